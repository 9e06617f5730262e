"""Imports between the folders of the package have one direction."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import verl_aer

PACKAGE = Path(verl_aer.__file__).parent

HELPERS = {"errors", "extras", "_failure", "_files", "_import_hooks", "_processes", "_progress", "_settings", "_tables"}
"""Modules without a folder. They import each other at most."""

CORE = {
    "rollouts": set(),
    "parts": {"rollouts"},
    "methods": {"parts"},
    "kernels": {"parts"},
    "config": {"rollouts", "parts", "methods"},
    "control": {"rollouts", "parts", "methods", "config"},
}
"""The folders that import neither veRL nor Ray nor vLLM, and the folders that each may import."""

ALLOWED = {
    **CORE,
    "forking": set(),
    "cpu": {"forking"},
    "integration": {*CORE, "cpu"},
    # Tools. These three know nothing of entropy control: `rollouts` gives evaluation the id of a question.
    "rewards": set(),
    "data": {"rewards"},
    "evaluation": {"data", "rewards", "rollouts", "cpu"},
    "reports": set(CORE),
    "launch": {*CORE, "integration", "reports"},
    "cli": {*CORE, "integration", "launch", "reports", "evaluation", "data", "rewards"},
}

STACK = ("verl", "ray", "vllm", "transfer_queue")


def modules_of(folder: str) -> list[Path]:
    single = PACKAGE / f"{folder}.py"
    return [single] if single.exists() else sorted((PACKAGE / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports anywhere, in functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [alias.name for alias in node.names]


def folders_imported(folder: str) -> set[str]:
    names = [name.split(".") for path in modules_of(folder) for name in imported(path)]
    return {parts[1] for parts in names if parts[0] == "verl_aer" and len(parts) > 1} - {folder}


def test_every_folder_has_a_rule_and_every_rule_a_folder():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders | files == {*ALLOWED, *HELPERS}


@pytest.mark.parametrize("folder", sorted({*ALLOWED, *HELPERS}))
def test_a_folder_imports_only_what_lies_below_it(folder):
    allowed = HELPERS if folder in HELPERS else {*ALLOWED[folder], *HELPERS, "__version__"}
    assert folders_imported(folder) <= allowed


def test_the_rules_have_no_circle():
    assert list(TopologicalSorter(ALLOWED).static_order())


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_the_modules_of_a_folder_have_no_circle(folder):
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in modules_of(folder)}
    packages = {name.removesuffix(".__init__") for name in names if name.endswith(".__init__")}
    graph = {}
    for name, path in names.items():
        found = {known for target in imported(path) for known in (target, target.rpartition(".")[0]) if known in names}
        # `__init__` of a folder imports the folder's modules; what imports it from outside imports them with it.
        graph[name] = found - packages - {name}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(names)


def test_the_core_imports_nothing_of_the_training_stack():
    paths = [path for folder in (*HELPERS, *CORE) for path in modules_of(folder)]
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]
    program = (
        "import importlib, json, sys\n"
        f"for name in {[module.removesuffix('.__init__') for module in modules]!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {STACK!r} if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
