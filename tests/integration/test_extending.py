"""The examples of the guide, outside the package: loaded by veRL's switch, checked, explained and simulated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "extending.md").read_text()
EXAMPLE, CONTROLLER = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)

COMPOSE = """
import sys
from hydra import compose, initialize_config_module
import verl
from verl_aer import ConfigError
from verl_aer.integration.preflight import read_entropy_config
for overrides in sys.argv[1:]:
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["+hardware=cpu", *overrides.split()])
    try:
        entropy = read_entropy_config(config)
    except ConfigError as error:
        print(str(error).splitlines()[1].strip())
        continue
    print(config.trainer.v1.trainer_mode, repr(entropy.allocation), entropy.target.kind, entropy.controller.kind)
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user whose modules lie in their own folder."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "my_entropy.py").write_text(EXAMPLE)
    (folder / "my_controller.py").write_text(CONTROLLER)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "VERL_USE_EXTERNAL_MODULES": "my_entropy,my_controller", "PYTHONPATH": path}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_example_is_under_thirty_lines():
    assert len(EXAMPLE.splitlines()) < 30


def test_verl_composes_the_example_from_outside_the_package_and_checks_it(outside):
    found = run(
        outside,
        *("-c", COMPOSE, "+entropy=aer_quadratic entropy.allocation.scale=0.5"),
        "+entropy=aent entropy/allocation=quadratic",
        "+entropy=aer_quadratic entropy.allocation.scale=-1",
    )
    *composed, problem = found.stdout.splitlines()[-3:]
    assert composed == [
        "aer_sync Quadratic(scale=0.5) anchored pi",
        "aer_sync Quadratic(scale=1.0) band pi",
    ], found.stderr
    assert problem.startswith("1. entropy.allocation.scale: must be > 0, got -1")


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
    assert found.stdout.startswith("aer_quadratic: AER with a quadratic allocation\nprovenance: custom\n"), found.stderr
    found = run(outside, "-m", "verl_aer.cli", "simulate", "aer_quadratic", "--steps", "20")
    assert found.stdout.startswith("aer_quadratic on a synthetic plant"), found.stderr
    found = run({**outside, "VERL_USE_EXTERNAL_MODULES": "nowhere"}, "-m", "verl_aer.cli", "methods")
    assert found.returncode == 2
    assert "VERL_USE_EXTERNAL_MODULES contains nowhere" in found.stderr


ADAM_RUN = """
import json, pathlib, sys
import my_controller
from verl_aer import EntropyControl, parse_entropy_config, to_mapping
from verl_aer.control.metrics import decision_metrics
from verl_aer.control.state_file import load_run, save_state
folder = pathlib.Path(sys.argv[1])
config = parse_entropy_config({"method": "aer", "target": {"anchor_steps": 3}, "controller": {"kind": "adam"}})
entropies = [0.9 * 0.93**step + 0.01 * (step % 3) for step in range(60)]
straight, resumed, rows = EntropyControl(config), EntropyControl(config), []
for step, entropy in enumerate(entropies, start=1):
    decision = straight.observe(entropy, step)
    rows.append({"step": step, "data": decision_metrics(decision, straight.state)})
    if step in (2, 30, 31):  # before and after H0 is known
        save_state(folder / "aer_state.json", resumed.state, config)
        resumed = EntropyControl(config, load_run(folder / "aer_state.json", config).state)
    assert resumed.observe(entropy, step) == decision, step
assert resumed.state == straight.state
assert len({row["data"]["aer/alpha"] for row in rows}) > 50
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(folder / "entropy.json").write_text(json.dumps(to_mapping(config)))
"""


def test_a_controllers_memory_goes_through_the_state_file_and_the_replay(outside, tmp_path):
    assert len([line for line in CONTROLLER.splitlines() if line]) <= 20
    trained = run(outside, "-c", ADAM_RUN, str(tmp_path))
    assert trained.returncode == 0, trained.stderr
    replay = ["simulate", "--replay", str(tmp_path / "metrics.jsonl"), "--config", str(tmp_path / "entropy.json")]
    found = run(outside, "-m", "verl_aer.cli", *replay)
    assert found.stdout.endswith("61 alphas recomputed, largest difference 0\n"), found.stdout + found.stderr
