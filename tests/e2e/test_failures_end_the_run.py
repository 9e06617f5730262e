"""If a process of a real run dies, the run ends within a minute, prints the cause last, and leaves no process."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.conftest import START_SECONDS, Training
from tests.e2e.test_train_and_resume import latest_step
from verl_aer._failure import explain_failure

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

WITHIN_SECONDS = 60
GENERATION_SECONDS = 25
"""Longer than the first step's generation takes on two busy cores, everything loaded for the first time."""


def assert_a_killed_worker_ends_the_run(training: Training, name: str) -> None:
    """Kill the run's only process of this name: the run ends within a minute, with the cause last."""
    (pid,) = training.pids_named(name)
    os.kill(pid, signal.SIGKILL)
    assert training.wait(WITHIN_SECONDS) not in (0, None)
    assert training.leaves_nothing(WITHIN_SECONDS)
    said = "\n".join(explain_failure(training.process.returncode, training.run.log))
    assert "WorkerDiedError" in said, said


# tests/e2e/test_tour.py kills a training worker.
@pytest.mark.parametrize("victim", ["VLLM::EngineCore", "ray::SimpleStorageUnit"])
def test_a_dead_process_ends_the_run_with_its_cause(train, victim):
    training = train("run", "aer", steps=1000)
    training.wait_for(lambda: len(training.steps) >= 1, START_SECONDS)
    assert_a_killed_worker_ends_the_run(training, victim)


HANGING_REWARD = """
import time
from pathlib import Path

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    while Path({flag!r}).exists():
        time.sleep(1)
    return {{"score": 0.0, "acc": 0.0}}
"""


def test_generation_that_stands_still_ends_the_run_with_the_last_good_checkpoint(train, tmp_path):
    checkpoints, flag, reward = tmp_path / "checkpoints", tmp_path / "hang", tmp_path / "reward.py"
    reward.write_text(HANGING_REWARD.format(flag=str(flag)))
    training = train(
        "run",
        "aer",
        f"reward.custom_reward_function.path={reward}",
        f"entropy.watchdog.rollout_timeout_s={GENERATION_SECONDS}",
        "trainer.save_freq=1",
        f"trainer.default_local_dir={checkpoints}",
        steps=1000,
    )
    training.wait_for(lambda: len(training.steps) >= 2, START_SECONDS)
    flag.touch()
    assert training.wait(GENERATION_SECONDS + WITHIN_SECONDS) not in (0, None)
    assert training.leaves_nothing(WITHIN_SECONDS)
    said = "\n".join(explain_failure(training.process.returncode, training.run.log))
    assert f"GenerationTimeoutError: no rollout was finished within {GENERATION_SECONDS} s" in said, said
    last = latest_step(checkpoints)
    assert f"The last good checkpoint is {checkpoints}/global_step_{last}." in said, said
