"""The installation on a GPU: pip resolves described environments without installing anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import verl_aer

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints" / "gpu.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = "verl_aer"
EXTRAS_OF_VERL = ("vllm", "flash-attn-cu130torch211")


def pinned(file: Path) -> dict[str, str]:
    """Name -> version, of the lines that are for this Python."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    found = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate():
            ((_, found[canonical(requirement.name)]),) = [(s.operator, s.version) for s in requirement.specifier]
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def environment(folder: Path, installed: dict[str, str], requires: dict[str, list[str]] | None = None) -> Path:
    """A Python in which pip finds these versions installed, each with what it requires, and no code of theirs."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name, version in installed.items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {text}" for text in (requires or {}).get(name, [])]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text("")
    return folder / "bin" / "python"


def our_wheel(folder: Path) -> Path:
    """This package as pip sees it before it unpacks it: what pyproject.toml requires, and no code."""
    lines = ["Metadata-Version: 2.1", f"Name: {OURS}", f"Version: {verl_aer.__version__}"]
    lines += [f"Requires-Dist: {text}" for text in PROJECT["dependencies"]]
    for extra, requirements in PROJECT["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}", *(f'Requires-Dist: {text}; extra == "{extra}"' for text in requirements)]
    wheel = folder / f"{OURS}-{verl_aer.__version__}-py3-none-any.whl"
    info = f"{OURS}-{verl_aer.__version__}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def would_install(*arguments: str, python: Path | None = None, offline: bool = False) -> dict[str, dict]:
    """Name -> pip's metadata of what `pip install` with these arguments would install or change."""
    command = [sys.executable, "-m", "pip", *(["--python", str(python)] if python else [])]
    command += ["install", "--dry-run", "--quiet", "--report", "-", *arguments]
    environ = dict(os.environ)
    if offline:
        # No index, and no folder of wheels that a machine's own settings name.
        environ = {name: value for name, value in environ.items() if not name.startswith("PIP_")}
        environ["PIP_CONFIG_FILE"] = os.devnull
        command.append("--no-index")
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    return {canonical(item["metadata"]["name"]): item["metadata"] for item in json.loads(done.stdout)["install"]}


def test_the_constraints_are_the_versions_that_verl_names_for_vllm():
    named = {}
    for requirement in map(Requirement, metadata.requires("verl")):
        exact = [clause.version for clause in requirement.specifier if clause.operator == "=="]
        if exact and any(requirement.marker.evaluate({"extra": extra}) for extra in EXTRAS_OF_VERL):
            named[canonical(requirement.name)] = exact[0]
    assert {"torch", "vllm", "transformers", "flash-attn"} <= named.keys()
    assert named.items() <= pinned(CONSTRAINTS).items()
    assert f"vllm=={named['vllm']}" in PROJECT["optional-dependencies"]["gpu"]


def test_beside_verl_nothing_is_changed_and_nothing_added(tmp_path):
    python = environment(tmp_path / "verl", pinned(CONSTRAINTS))
    assert would_install(str(our_wheel(tmp_path)), python=python, offline=True).keys() == {"verl-aer"}


def test_another_version_than_ours_would_be_noticed(tmp_path):
    python = environment(tmp_path / "verl", pinned(CONSTRAINTS) | {"omegaconf": "2.2.0"})
    with pytest.raises(AssertionError, match="No matching distribution found for omegaconf"):
        would_install(str(our_wheel(tmp_path)), python=python, offline=True)


@pytest.mark.parametrize(("has_gpu", "extra"), [("yes", "gpu"), ("no", "cpu")])
def test_make_installs_the_stack_of_the_machine_with_its_constraints(has_gpu, extra, tmp_path):
    command = ["make", "--dry-run", f"HAS_GPU={has_gpu}", f"VENV={tmp_path}/venv", "install"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    installs = [line.split("pip install --quiet ")[1] for line in done.stdout.splitlines() if "pip install" in line]
    assert installs[0] == "--upgrade pip"
    assert installs[-1] == f"-c constraints/{extra}.txt -e '.[{extra},dev]'"
    # With a GPU torch comes with vLLM, and nothing is built from source before torch is there.
    assert [line.strip() for line in installs[1:-1]] == ([] if has_gpu == "yes" else ["torch==2.13.0"])
    assert not any("flash" in text for text in PROJECT["optional-dependencies"]["gpu"])


@pytest.mark.slow
@pytest.mark.parametrize("extras", ["", "[math,plot]", "[gpu]"])
def test_beside_what_an_index_gives_for_verl_nothing_is_changed(extras, verl_with_vllm, tmp_path):
    """Needs a package index: about two minutes for the environment, once, and seconds for each of ours."""
    requires = {name: found.get("requires_dist", []) for name, found in verl_with_vllm.items()}
    python = environment(tmp_path / "env", {name: found["version"] for name, found in verl_with_vllm.items()}, requires)
    added = would_install(f"{our_wheel(tmp_path)}{extras}", python=python)
    assert "verl-aer" in added
    assert added.keys() & verl_with_vllm.keys() == set()
    assert extras or added.keys() == {"verl-aer"}


@pytest.fixture(scope="module")
def verl_with_vllm():
    found = would_install("--ignore-installed", "-c", str(CONSTRAINTS), "verl[vllm]==0.9.1")
    pins = pinned(CONSTRAINTS)
    assert {name: pins[name] for name in found if name in pins} == {
        name: of["version"] for name, of in found.items() if name in pins
    }
    return found


@pytest.mark.slow
def test_from_nothing_the_stack_has_an_answer(tmp_path):
    """Needs a package index: about two minutes."""
    found = would_install("--ignore-installed", "-c", str(CONSTRAINTS), f"{our_wheel(tmp_path)}[gpu]")
    pins = pinned(CONSTRAINTS)
    assert {"verl-aer", "verl", "vllm", "torch", "math-verify", "matplotlib"} <= found.keys()
    assert "flash-attn" not in found
    assert {name: of["version"] for name, of in found.items() if name in pins}.items() <= pins.items()
