"""Every recipe of `examples/math/` with each of its methods, composed as veRL composes it, and checked."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from verl_aer.launch.doctor import OK, compose, config_checks

FOLDER = Path(__file__).parents[2] / "examples" / "math"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.sh") if path.stem != "common")
METHODS = ["none", "fixed", "clip_higher", "aer", "aer_allocation_only", "aer_no_allocation", "aer_absolute_target"]


def dry_run(recipe: str, method: str, python: str, *overrides: str) -> subprocess.CompletedProcess:
    command = ["bash", str(FOLDER / f"{recipe}.sh"), method, *overrides]
    environment = {**os.environ, "DRY_RUN": "1", "PYTHON": python, "SEED": "3"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def words(recipe: str, method: str, *overrides: str) -> list[str]:
    """The overrides that the recipe gives to veRL's command."""
    # `true` takes the place of the check, which costs ten seconds in a separate process.
    line = dry_run(recipe, method, "true", *overrides).stdout.splitlines()[0]
    found = shlex.split(line)
    assert found[:3] == ["true", "-m", "verl.trainer.main_ppo"]
    return found[3:]


def test_there_are_five_recipes():
    assert RECIPES == ["multi_turn", "one_gpu", "one_gpu_lora", "qwen3_4b", "qwen3_8b"]


@pytest.mark.parametrize(
    ("recipe", "method"),
    [*((recipe, "aer") for recipe in RECIPES), *(("qwen3_4b", method) for method in METHODS if method != "aer")],
)
def test_a_recipe_composes_and_has_no_problem(recipe, method):
    checks = config_checks(words(recipe, method), elsewhere=True)
    assert [check for check in checks if check.status != OK] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_are_whole(recipe):
    config = compose(words(recipe, "aer"))
    actor, rollout, data = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.data
    gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    assert data.train_batch_size % actor.ppo_mini_batch_size == 0
    assert actor.ppo_mini_batch_size * rollout.n % gpus == 0
    assert actor.ppo_max_token_len_per_gpu >= data.max_prompt_length + data.max_response_length
    assert config.entropy.method == "aer"
    assert config.data.seed == 3
    assert actor.optim.lr == (1e-5 if recipe == "one_gpu_lora" else 1e-6)


def test_a_users_overrides_come_last_and_a_wrong_one_is_named():
    assert words("one_gpu", "aer", "data.train_batch_size=32")[-1] == "data.train_batch_size=32"
    checks = config_checks(words("one_gpu", "aer", "actor_rollout_ref.rollout.n=1"), elsewhere=True)
    assert "but rollout.n=1" in checks[0].found


def test_a_dry_run_is_one_command():
    run = dry_run("one_gpu", "aer", sys.executable)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "ppo_trainer with these overrides has no problem" in run.stdout


def test_a_method_that_does_not_exist_is_named():
    (check,) = config_checks(words("one_gpu", "no_such_method"), elsewhere=True)
    assert "no_such_method" in check.found
