"""The guide's example, from outside the package: loaded by veRL's switch, checked, explained and simulated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), flags=re.DOTALL).group(1)

COMPOSE = """
import sys
from hydra import compose, initialize_config_module
import verl
from verl_aer.integration.preflight import read_entropy_config
with initialize_config_module("verl.trainer.config", version_base=None):
    config = compose("ppo_trainer", overrides=["+hardware=cpu", *sys.argv[1:]])
entropy = read_entropy_config(config)
print(config.trainer.v1.trainer_mode, entropy.allocation, entropy.target.kind, entropy.controller.kind)
"""


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose module lies in its own folder."""
    (tmp_path / "my_entropy.py").write_text(EXAMPLE)
    return {**os.environ, "VERL_USE_EXTERNAL_MODULES": "my_entropy", "PYTHONPATH": str(tmp_path)}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_example_is_under_thirty_lines():
    assert len(EXAMPLE.splitlines()) < 30


def test_the_example_runs_from_outside_the_package(outside):
    found = run(outside, "-c", COMPOSE, "+entropy=aer_quadratic", "entropy.allocation.scale=0.5")
    assert found.stdout.split("\n")[-2] == "aer_sync Quadratic(scale=0.5) anchored pi", found.stderr


def test_its_part_goes_into_another_method(outside):
    found = run(outside, "-c", COMPOSE, "+entropy=aent", "entropy/allocation=quadratic")
    assert found.stdout.split("\n")[-2] == "aer_sync Quadratic(scale=1.0) band pi", found.stderr


def test_its_settings_are_checked(outside):
    found = run(outside, "-c", COMPOSE, "+entropy=aer_quadratic", "entropy.allocation.scale=-1")
    assert "entropy.allocation.scale: must be > 0, got -1" in found.stderr


def test_it_weighs_as_written(outside):
    code = """
import my_entropy, numpy as np
from verl_aer import Groups, get_method
from verl_aer.parts.allocation import allocate
groups = Groups(np.array([0.0, 0.5, 1.0]), size=np.full(3, 4), prompt_of_row=np.arange(3))
print(allocate(get_method("aer_quadratic").allocation, groups).tolist())
"""
    assert run(outside, "-c", code).stdout == "[1.0, 0.25, 0.0]\n"


def test_the_command_line_knows_it(outside):
    found = run(outside, "-m", "verl_aer.cli", "methods", "aer_quadratic")
    assert found.stdout.startswith("aer_quadratic: AER with a quadratic allocation\nstanding: own\n"), found.stderr
    found = run(outside, "-m", "verl_aer.cli", "simulate", "--method", "aer_quadratic", "--steps", "20")
    assert found.stdout.startswith("aer_quadratic around a synthetic plant"), found.stderr
    found = run({**outside, "VERL_USE_EXTERNAL_MODULES": "nowhere"}, "-m", "verl_aer.cli", "methods")
    assert found.returncode == 2
    assert "VERL_USE_EXTERNAL_MODULES names nowhere" in found.stderr
