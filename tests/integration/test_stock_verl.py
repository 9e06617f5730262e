"""With the package installed, a run that does not use it is unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from examples.countdown.model import build_model, build_tokenizer, save
from tests.integration.test_engines import free_port

REGISTRIES = """
import json, sys, warnings
warnings.simplefilter("ignore")
import verl
if "none" in sys.argv:
    assert not any(name.startswith("verl_aer") for name in sys.modules)
else:
    assert "verl_aer.integration.plugin" in sys.modules
import verl.trainer.main_ppo, verl.trainer.ppo.ray_trainer, verl.trainer.ppo.v1, verl.workers.engine_workers
import verl.experimental.agent_loop, verl.workers.rollout.replica
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.workers.engine.base import EngineRegistry

def name(thing):
    return f"{thing.__module__}.{thing.__qualname__}"

def owners():
    # Every function and class that a module of veRL's shows, and every method of its classes: by where it is defined.
    for module_name, module in sorted(sys.modules.items()):
        if module_name.split(".")[0] != "verl" or module is None:
            continue
        for key, value in vars(module).items():
            if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
                yield f"{module_name}.{key}", f"{value.__module__}.{value.__qualname__}"
            if isinstance(value, type) and value.__module__ == module_name:
                for member, method in vars(value).items():
                    code = getattr(method, "__code__", None)
                    if code is not None:
                        yield f"{module_name}.{key}.{member}", code.co_filename + ":" + str(code.co_firstlineno)

engines = {
    f"{model}/{backend}/{key}": name(cls)
    for model, backends in EngineRegistry._engines.items()
    for backend, classes in backends.items()
    for key, cls in classes.items()
}
print(json.dumps({
    "engines": engines,
    "trainers": {key: name(cls) for key, cls in TRAINER_REGISTRY.items()},
    "estimators": {str(key): name(cls) for key, cls in ADV_ESTIMATOR_REGISTRY.items()},
    "losses": {key: name(loss) for key, loss in POLICY_LOSS_REGISTRY.items()},
    "owners": dict(owners()),
}))
"""


def run(arguments: list[str], **environment: str) -> str:
    """What a Python process prints; it has to end well."""
    return _run(arguments, environment).stdout


def run_for_stderr(arguments: list[str], **environment: str) -> str:
    return _run(arguments, environment).stderr


def _run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What stands in veRL's registries and modules, with and without the plug-in, on a machine with a GPU."""
    # Only the plug-in's own detection is deceived: beside a GPU nothing of the CPU platform may act.
    folder = tmp_path_factory.mktemp("smi")
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {
        plugins: json.loads(
            run(["-c", REGISTRIES, plugins], VERL_USE_EXTERNAL_PLUGINS=plugins, PATH=path).splitlines()[-1]
        )
        for plugins in ("none", "auto")
    }


def test_verls_registries_hold_what_they_held(registries):
    without, with_plugin = registries["none"], registries["auto"]
    for registry in ("engines", "estimators", "losses"):
        assert with_plugin[registry] == without[registry] != {}
    ours = {"aer_sync", "aer_colocate_async", "aer_separate_async"}
    assert with_plugin["trainers"].keys() - without["trainers"].keys() == ours
    assert {name: cls for name, cls in with_plugin["trainers"].items() if name not in ours} == without["trainers"]


def test_no_class_or_function_of_verls_is_replaced(registries):
    without, with_plugin = registries["none"]["owners"], registries["auto"]["owners"]
    assert len(without) > 2000
    different = {name for name in without.keys() | with_plugin.keys() if without.get(name) != with_plugin.get(name)}
    # Modules of veRL that our trainer has imported, or that import each other in another order, are no difference.
    assert {name for name in different if name in without and name in with_plugin} == set()
    assert not [owner for owner in with_plugin.values() if owner.startswith("verl_aer")]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What veRL's workers compute in a process with the plug-in and in one without it."""
    folder = tmp_path_factory.mktemp("stock")
    tokenizer = build_tokenizer()
    save(build_model(tokenizer, seed=0), tokenizer, folder / "model")
    found = {}
    for plugins in ("none", "auto"):
        out = folder / f"{plugins}.pt"
        run(
            ["-m", "tests.integration.stock_worker", str(folder / "model"), str(out)],
            VERL_USE_EXTERNAL_PLUGINS=plugins,
            WORLD_SIZE="1",
            RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(free_port()),
        )
        found[plugins] = torch.load(out, weights_only=False)
    return found


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for name in sorted(value) for leaf in leaves(value[name])]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


def test_a_worker_computes_the_same_bits_in_every_layout(workers):
    without, with_plugin = workers["none"], workers["auto"]
    assert without.keys() == with_plugin.keys()
    layouts = {name.rpartition(" ")[2] for name in without if "layout" in name}
    assert layouts == {"v1_layout", "legacy_layout", "sft_layout"}
    for name in without:
        expected, found = leaves(without[name]), leaves(with_plugin[name])
        assert len(expected) == len(found) > 0, name
        for one, other in zip(expected, found, strict=True):
            same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
            assert same, name


def test_what_is_compared_is_an_entropy_of_every_token(workers):
    """veRL computes it for prompts too, which this package's engine leaves out."""
    assert (workers["auto"]["policy, v1_layout"]["entropy"] > 0).all()
    assert (workers["auto"]["policy, legacy_layout"]["entropy"] > 0).all()


@pytest.mark.parametrize("module", ["engine", "loss", "trainer", "batch", "plugin"])
def test_any_module_may_be_the_first_import_of_a_process(module):
    run(["-c", f"import verl_aer.integration.{module}; import verl.workers.engine.fsdp.transformer_impl"])


def test_a_process_that_imports_hydra_loads_no_method_before_it_composes():
    """A dozen processes of a run import Hydra, and one of them composes."""
    program = """
import sys
import verl, hydra
print("verl_aer.config.search_path" in sys.modules, "verl_aer.config.schema" in sys.modules)
with hydra.initialize_config_module("verl.trainer.config", version_base=None):
    print("verl_aer.config.schema" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True False", "True"]
