"""A run of the real stack with seconds per step: its inputs, sizes and output files."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from examples.countdown.model import build_model, build_tokenizer, save
from examples.countdown.prepare import prepare

SMALL = [
    "data.train_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.rollout.agent.num_workers=1",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
]
"""4 prompts of 4 rollouts, two mini-batches, and no validation."""


def make_inputs(folder: Path, train_rows: int) -> None:
    """Data and a randomly initialized policy of the Countdown example."""
    prepare(folder / "data", train_rows=train_rows, seed=0)
    tokenizer = build_tokenizer()
    save(build_model(tokenizer, seed=0), tokenizer, folder / "model")


def logged_steps(log: Path) -> list[dict]:
    """The metrics of each step that is logged so far."""
    if not log.exists():
        return []
    return [json.loads(line)["data"] for line in log.read_text().rpartition("\n")[0].splitlines()]


def command_line(pid: int) -> str:
    """Of a process; empty if it has ended."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return ""
