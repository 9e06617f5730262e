"""Countdown's overrides with veRL's configuration and the example's files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from examples.countdown.model import build_model, build_tokenizer, save
from examples.countdown.prepare import held_out, train_problems
from examples.countdown.settings import (
    AER_OVERRIDES,
    MINI_BATCHES,
    PROMPTS,
    ROLLOUTS,
    STEPS,
    verl_overrides,
)
from examples.countdown.task import LEVELS
from verl_aer.config.schema import parse_entropy_config


@pytest.fixture
def overrides(tmp_path) -> dict[str, str]:
    listed = verl_overrides(tmp_path / "data", tmp_path / "model", seed=7)
    keys = [override.split("=", 1)[0] for override in listed]
    assert len(set(keys)) == len(keys)
    return dict(override.split("=", 1) for override in listed)


def test_mini_batches_and_micro_batches_divide_the_step(overrides):
    # veRL counts mini-batches in prompts and micro-batches in trajectories; one micro-batch makes a mini-batch.
    actor = "actor_rollout_ref.actor"
    assert int(overrides[f"{actor}.ppo_mini_batch_size"]) * MINI_BATCHES == PROMPTS
    assert int(overrides[f"{actor}.ppo_micro_batch_size_per_gpu"]) * MINI_BATCHES == PROMPTS * ROLLOUTS


def test_every_prompt_fits_the_prompt_length(overrides, tmp_path):
    tokenizer = build_tokenizer()
    save(build_model(tokenizer, seed=0), tokenizer, tmp_path / "model")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    problems = [*train_problems(400, seed=0), *(p for of_level in held_out().values() for p in of_level)]
    longest = max(len(loaded(problem.prompt)["input_ids"]) for problem in problems)
    # four numbers, three commas, an equals sign, a target of two digits, a colon
    assert longest == 11 == int(overrides["data.max_prompt_length"])


def test_every_batch_has_the_same_mix_of_levels(overrides):
    assert overrides["data.shuffle"] == "false"
    levels = [problem.level for problem in train_problems(4 * PROMPTS, seed=7)]
    batches = [Counter(levels[start : start + PROMPTS]) for start in range(0, len(levels), PROMPTS)]
    assert batches == [dict.fromkeys(LEVELS, PROMPTS // len(LEVELS))] * 4


def test_the_reward_file_exists_and_paths_are_absolute(overrides):
    assert Path(overrides["reward.custom_reward_function.path"]).is_file()
    for key in ("data.train_files", "data.val_files", "actor_rollout_ref.model.path"):
        assert Path(overrides[key]).is_absolute()


def test_the_seed_reaches_prompts_sampling_and_mini_batches(overrides):
    seeded = {key for key, value in overrides.items() if key.endswith("seed") and value == "7"}
    assert seeded == {
        "data.seed",
        "actor_rollout_ref.actor.data_loader_seed",
        "actor_rollout_ref.actor.fsdp_config.seed",
        "actor_rollout_ref.rollout.seed",
    }


def test_held_out_prompts_are_evaluated_after_the_last_step(overrides):
    assert overrides["trainer.test_freq"] == overrides["trainer.total_training_steps"] == str(STEPS)


def test_aer_overrides_are_valid_settings_of_the_method():
    node: dict = {"method": "aer"}
    for override in AER_OVERRIDES:
        key, value = override.removeprefix("entropy.").split("=")
        part, field = key.split(".")
        node.setdefault(part, {})[field] = float(value)
    config = parse_entropy_config(node)
    assert config.target.tau == 0.6
    assert (config.controller.ki, config.controller.kp, config.controller.ema) == (0.04, 2.0, 0.5)
