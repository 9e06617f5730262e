"""The command of the example, and when it is repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.countdown import settings, train
from verl_aer.launch.doctor import compose

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> train.Run:
    return train.Run(folder=tmp_path / "run", data=tmp_path / "data", model=tmp_path / "model")


def test_the_command_is_verls_own_entry_point_with_the_method_in_one_word(run):
    command = train.training_command(run, "fixed", seed=1, steps=7, overrides=["entropy.controller.coefficient=0.1"])
    assert command[1:3] == ["-m", "verl.trainer.main_ppo"]
    assert "+entropy=fixed" in command
    assert "trainer.total_training_steps=7" in command
    # Last, so that it wins over what the example sets.
    assert command[-1] == "entropy.controller.coefficient=0.1"


@pytest.mark.parametrize(
    ("accelerator", "flash_attn", "expected"),
    [(False, False, ["+hardware=cpu"]), (True, True, []), (True, False, settings.WITHOUT_FLASH_ATTENTION)],
)
def test_a_gpu_without_flash_attention_takes_torchs(accelerator, flash_attn, expected, run, monkeypatch):
    monkeypatch.setattr(train, "accelerator_is_here", lambda: accelerator)
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: name if flash_attn else None)
    command = train.training_command(run, "aer", seed=0, steps=5)
    known = {"+hardware=cpu", *settings.WITHOUT_FLASH_ATTENTION}
    assert [word for word in command if word in known] == expected


def test_without_flash_attention_the_config_composes(run):
    model = compose(["+entropy=aer", *settings.WITHOUT_FLASH_ATTENTION])
    assert model.actor_rollout_ref.model.use_remove_padding is False
    assert model.actor_rollout_ref.actor.use_remove_padding is False
    assert model.actor_rollout_ref.model.override_config == {"attn_implementation": "sdpa"}


def test_a_run_is_finished_only_with_the_same_command(run):
    command = train.training_command(run, "aer", seed=0, steps=5)
    assert not train.is_finished(run, command)
    run.folder.mkdir()
    run.finished.write_text(json.dumps({"command": command}))
    assert train.is_finished(run, command)
    assert not train.is_finished(run, train.training_command(run, "aer", seed=0, steps=6))
    assert not train.is_finished(run, train.training_command(run, "none", seed=0, steps=5))


def test_seeds_share_the_warm_start_and_not_the_training_prompts(tmp_path):
    first, second = (train.run_in(tmp_path / f"aer-seed{seed}", tmp_path, seed) for seed in (0, 1))
    assert first.model == second.model
    assert first.data != second.data


@pytest.mark.parametrize("deep", [False, True])
def test_sockets_get_a_short_folder_and_nothing_is_left_in_it(run, tmp_path, monkeypatch, deep):
    root = Path("/tmp/a") if not deep else tmp_path / ("x" * 80)
    monkeypatch.setattr(train, "ROOT", root)
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: None)
    with train.training_environment(run) as environment:
        scratch = Path(environment["RAY_TMPDIR"])
        assert len(str(scratch)) <= train.LONGEST_SOCKET_FOLDER
        assert scratch.is_relative_to(root) != deep
        assert environment["VERL_FILE_LOGGER_PATH"] == str(run.metrics.resolve())
    if deep:
        assert not scratch.exists()


def test_compare_covers_its_grid_once_and_runs_nothing_when_dry(tmp_path):
    environment = {
        **os.environ,
        "DRY_RUN": "1",
        "SEEDS": "0 1",
        "FIXED": "0.1",
        "FIXED_SEEDS": "1",
        "RUNS": str(tmp_path / "runs"),
    }
    script = ROOT / "examples/countdown/compare.sh"
    environment["BIN"] = str(Path(sys.executable).parent)
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
    commands = done.stdout.strip().splitlines()
    names = [word.partition("=")[2] for line in commands for word in line.split() if "experiment_name=" in word]
    expected = {f"{arm}-seed{seed}" for arm in ("none", "aer") for seed in (0, 1)} | {"fixed-0.1-seed1"}
    assert len(names) == 5
    assert set(names) == expected
    assert not (tmp_path / "runs").exists()
