from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import yaml

import verl_aer

OUTSIDE_THE_CORE = ("verl_aer.integration", "verl_aer.cpu")
NOT_IN_THE_CORE = ("verl", "ray", "vllm", "transfer_queue", *OUTSIDE_THE_CORE)


def core_modules() -> list[str]:
    """Every module of the package outside integration and cpu, found without importing any."""
    found, folders = ["verl_aer"], [("verl_aer", Path(verl_aer.__file__).parent)]
    while folders:
        prefix, folder = folders.pop()
        for module in pkgutil.iter_modules([str(folder)], f"{prefix}."):
            if module.name in OUTSIDE_THE_CORE:
                continue
            found.append(module.name)
            if module.ispkg:
                folders.append((module.name, folder / module.name.rsplit(".", 1)[1]))
    return sorted(found)


def test_the_core_imports_nothing_of_the_training_stack():
    modules = core_modules()
    assert {"verl_aer.control.loop", "verl_aer.methods.aer", "verl_aer.config.schema"} <= set(modules)
    program = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {NOT_IN_THE_CORE!r} if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_module_imported_first_finds_every_method_registered():
    # The parts import the registry and the methods import the parts: an order that a first import could break.
    program = "import verl_aer.methods.registry as registry; print(*registry.method_names())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == verl_aer.method_names()


def test_the_public_names_are_listed_and_there():
    assert verl_aer.__all__ == sorted(verl_aer.__all__)
    assert [name for name in verl_aer.__all__ if not hasattr(verl_aer, name)] == []
    public = {name for name, value in vars(verl_aer).items() if not name.startswith("_") and callable(value)}
    assert public == set(verl_aer.__all__)


def test_the_version_has_one_place_and_the_citation_follows_it():
    root = Path(verl_aer.__file__).parents[1]
    assert 'dynamic = ["version"]' in (root / "pyproject.toml").read_text()
    assert metadata.version("verl_aer") == verl_aer.__version__
    assert yaml.safe_load((root / "CITATION.cff").read_text())["version"] == verl_aer.__version__
