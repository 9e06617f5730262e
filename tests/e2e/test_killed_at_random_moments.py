"""A run that is killed repeatedly resumes from its last complete checkpoint each time, bit for bit."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time

import pytest

from tests.e2e.conftest import START_SECONDS, Training
from tests.e2e.test_train_and_resume import latest_step, saved_state
from verl_aer import parse_entropy_config
from verl_aer.control.state_file import entropy_settings_path, load_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLS = 20
LONGEST_WAIT = 8.0
"""Seconds after the first step of a run: two or three steps, each with sampling, update and save."""
RESUMED = re.compile(r"\[verl_aer\] resumed after step (\d+): alpha (\S+), initial entropy (\S+)")


@pytest.mark.timeout(7200)
def test_killed_at_random_moments_and_resumed_from_whole_checkpoints(train, tmp_path):
    rng = random.Random(0)
    checkpoints = tmp_path / "checkpoints"
    overrides = [
        f"trainer.default_local_dir={checkpoints}",
        "trainer.resume_mode=auto",
        "trainer.save_freq=1",
        "entropy.target.tau=1.0",
        "entropy.controller.alpha_init=0.01",
    ]
    step, state = 0, None
    for kill in range(KILLS):
        training = train(f"run{kill}", "aer", *overrides, steps=1000)
        training.wait_for(lambda training=training: training.steps, START_SECONDS)
        time.sleep(rng.uniform(0.0, LONGEST_WAIT))
        training.tree.watch()
        os.kill(training.process.pid, signal.SIGKILL)
        training.wait(10)
        training.tree.end()

        resumed = RESUMED.search(training.log)
        if step:
            assert resumed, training.log[-3000:]
            assert resumed.groups() == (str(step), repr(state["alpha"]), repr(state["initial_entropy"]))
            assert training.steps[0]["training/global_step"] == step + 1
            assert training.steps[0]["aer/alpha"] == state["alpha"]
        else:
            assert not resumed
        config = parse_entropy_config(entropy_settings(training))
        for file in checkpoints.glob("global_step_*/aer_state.json"):
            load_run(file, config)  # whole, whichever moment the kill came at
        step = latest_step(checkpoints)
        if step:
            state = saved_state(checkpoints, step)
    assert step >= KILLS


def entropy_settings(training: Training) -> dict:
    """What the run wrote beside its metrics log."""
    return json.loads(entropy_settings_path(training.run.metrics).read_text())
