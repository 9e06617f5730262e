from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import verl_aer


@pytest.mark.parametrize("module", ["verl_aer.methods.base", "verl_aer.parts.base", "verl_aer.config.schema"])
def test_a_module_imported_first_finds_every_method_and_part_registered(module):
    program = (
        f"import {module}\nfrom verl_aer.methods.base import method_names\nfrom verl_aer.parts.base import part_names\n"
        "print(method_names(), part_names('allocation'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{verl_aer.method_names()} {verl_aer.part_names('allocation')}"


def test_type_checkers_see_the_public_names():
    stub = ast.parse(Path(verl_aer.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    seen = {(node.module, alias.name) for node in imports for alias in node.names if alias.name == alias.asname}
    assert seen == {(module, name) for module, names in verl_aer._PUBLIC.items() for name in names}
    assert all(hasattr(verl_aer, name) for name in verl_aer.__all__)


def test_the_version_has_one_place_and_the_citation_follows_it():
    root = Path(verl_aer.__file__).parents[1]
    assert 'dynamic = ["version"]' in (root / "pyproject.toml").read_text()
    assert metadata.version("verl_aer") == verl_aer.__version__
    assert yaml.safe_load((root / "CITATION.cff").read_text())["version"] == verl_aer.__version__
