"""A process of a real run dies: the run ends within a minute, says why last, and leaves nothing behind."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.conftest import START_SECONDS
from verl_aer.failure import explain_failure

pytestmark = pytest.mark.e2e

WITHIN_SECONDS = 60


@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", ["ray::WorkerDict", "VLLM::EngineCore"])
def test_a_dead_process_ends_the_run_with_its_cause(train, victim):
    training = train("run", "aer", steps=1000)
    training.wait_for(lambda: len(training.steps) >= 1, START_SECONDS)
    (pid,) = training.pids_named(victim)
    os.kill(pid, signal.SIGKILL)
    assert training.wait(WITHIN_SECONDS) not in (0, None)
    assert training.leaves_nothing(WITHIN_SECONDS)
    said = "\n".join(explain_failure(training.process.returncode, training.run.log))
    assert "WorkerDied" in said, said
