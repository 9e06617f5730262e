"""A real run on data of `data_prep`: trained, saved, killed, resumed, ended cleanly, evaluated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.dapo_math_17k import DATA_SET
from examples.countdown.prepare import held_out, train_problems, write_parquet
from examples.countdown.settings import RESPONSE_LENGTH, TEST_SAMPLES
from examples.countdown.task import CountdownProblem
from tests.data_prep.hub_samples import dapo
from tests.e2e.conftest import START_SECONDS, Inputs, Training
from tests.small_run import command_line
from verl_aer.cli.main import main as verl_aer
from verl_aer.data.prepare import PreparationSettings, prepare
from verl_aer.evaluation.samples import read_run
from verl_aer.evaluation.validation_dumps import read_dump

pytestmark = pytest.mark.e2e

# τ = 1 and α₀ > 0, so that α moves at every step: a coefficient that sits at a bound would hide a lost state.
MOVING_ALPHA = [
    "entropy.target.tau=1.0",
    "entropy.controller.alpha_init=0.01",
    "entropy.controller.ki=0.05",
    "entropy.controller.kp=0.02",
    "entropy.controller.ema=0.5",
    "entropy.controller.alpha_max=0.2",
    "trainer.save_freq=3",
]
KI, KP, EMA, LARGEST_ALPHA = 0.05, 0.02, 0.5, 0.2

LONG_PROMPTS = 20
"""One batch of the evaluation, which does not fit one step of vLLM."""

VALIDATED_PER_LEVEL = 20
"""Held-out problems of each level, with 8 samples each: enough for a standard error of 0.03."""

PROBLEMS = {
    "train": list({problem.prompt: problem for problem in train_problems(64, seed=0)}.values()),
    "val": [problem for problems in held_out().values() for problem in problems[:VALIDATED_PER_LEVEL]],
}

TRAINING_SECONDS = 15
"""After these, nothing that trains, generates or holds memory may live on."""
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Two small helpers of Ray's own, which give the dead cluster a minute to come back and then end by themselves."""
RAY_AGENTS_SECONDS = 90


def saved_state(checkpoints: Path, step: int) -> dict:
    return json.loads((checkpoints / f"global_step_{step}" / "aer_state.json").read_text())["state"]


def smooth(previous: float | None, entropy: float) -> float:
    return entropy if previous is None else EMA * previous + (1 - EMA) * entropy


def next_alpha(integral: float, error: float) -> tuple[float, float]:
    """The controller's rule, written a second time: what it resumes from, and what the next step trains with."""
    integral = min(max(integral + KI * error, 0.0), LARGEST_ALPHA)
    return integral, min(max(integral + KP * error, 0.0), LARGEST_ALPHA)


def latest_step(checkpoints: Path) -> int:
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text() or 0) if tracker.exists() else 0


@pytest.mark.timeout(1200)
@pytest.mark.guards("bug 8")
# Two nodes with a rank each resume in tests/slurm too.
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_run_resumes_bit_for_bit_and_leaves_nothing_behind(ranks, train, inputs, reward, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    data = {name: prepared(problems, tmp_path / f"{name}.parquet") for name, problems in PROBLEMS.items()}
    shared = [*MOVING_ALPHA, f"trainer.n_gpus_per_node={ranks}", f"trainer.default_local_dir={checkpoints}"]
    shared += [f"data.{name}_files={file}" for name, file in data.items()]

    first = train("first", "aer", *shared, reward, steps=1000)
    first.wait_for(lambda: latest_step(checkpoints) == 3 and len(first.steps) >= 3, START_SECONDS)
    first.tree.watch()
    os.kill(first.process.pid, signal.SIGKILL)
    assert first.wait(10) == -signal.SIGKILL
    first_trees_end = time.monotonic() + RAY_AGENTS_SECONDS
    assert only_ray_agents_are_left(first), [command_line(pid) for pid in first.tree.watch()]

    # The log proves the stack.
    assert f"[verl_aer] training: FSDP2, world size {ranks}, cpu:gloo" in first.log
    assert f"[verl_aer] rollout: {ranks} replica(s) of" in first.log
    assert "vllm 0.30" in first.log
    assert f"{ranks} WorkerDict" in first.log

    # α and H₀ of three steps, recomputed from the logged entropies.
    steps = first.steps[:3]
    h0 = steps[0]["aer/entropy"]
    assert [step["aer/initial_entropy"] for step in steps] == [h0] * 3
    integral = alpha = 0.01
    smoothed = None
    for step in steps:
        assert step["aer/alpha"] == alpha
        smoothed = smooth(smoothed, step["aer/entropy"])
        integral, alpha = next_alpha(integral, h0 - smoothed)
    saved = saved_state(checkpoints, 3)
    assert saved["last_entropy"] == smoothed
    assert (saved["alpha"], saved["controller"]) == (alpha, {"integral": integral, "entropy_ema": smoothed})
    assert (saved["initial_entropy"], saved["step"]) == (h0, 3)
    assert not {alpha, integral} & {0.0, 0.01, LARGEST_ALPHA}
    assert alpha != integral
    assert verl_aer(["simulate", "--replay", str(first.run.metrics)]) == 0

    validated = ["trainer.test_freq=4", reward]
    second = train("second", "aer", *shared, *validated, "trainer.resume_mode=auto", steps=4)
    assert second.wait(START_SECONDS) == 0, second.log[-3000:]
    assert f"[verl_aer] resumed after step 3: alpha {alpha!r}, initial entropy {h0!r}" in second.log
    (step,) = second.steps
    assert (step["training/global_step"], step["aer/alpha"], step["aer/initial_entropy"]) == (4, alpha, h0)
    _, following = next_alpha(integral, h0 - smooth(smoothed, step["aer/entropy"]))
    assert step["aer/alpha_next"] == following
    resumed = saved_state(checkpoints, 4)
    assert (resumed["alpha"], resumed["step"], resumed["updates"]) == (following, 4, 4)
    assert (resumed["initial_entropy"], resumed["entropy_count"]) == (h0, 4)  # H₀ was not measured again

    # A clean end: nothing left of either run, and nothing on the screen that looks like a failure.
    assert first.leaves_nothing(max(0.0, first_trees_end - time.monotonic()))
    assert second.leaves_nothing(20)
    assert "Traceback" not in second.log
    assert "EngineDeadError" not in second.log

    evaluated_as_validated(
        checkpoints / "global_step_4", data["val"], inputs, second.run.validation / "4.jsonl", tmp_path / "evaluated"
    )


def only_ray_agents_are_left(training: Training) -> bool:
    """Whether what trains, generates or holds memory ends in time."""
    deadline = time.monotonic() + TRAINING_SECONDS
    while not all(command_line(pid).startswith(RAY_AGENTS) for pid in training.tree.watch()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def prepared(problems: Sequence[CountdownProblem], out: Path) -> Path:
    """Made by a script of `data_prep` from rows in DAPO-Math-17k's shape; short, as the policy's context is."""
    source = out.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(dapo(problem.prompt, problem.key)) + "\n" for problem in problems))
    prepare(DATA_SET, out, [source], settings=PreparationSettings(instruction=""))
    return out


def evaluated_as_validated(checkpoint: Path, data: Path, inputs: Inputs, dump: Path, out: Path) -> None:
    """`verl-aer evaluate` on the checkpoint's shards finds the accuracy that the trainer found."""
    problems = pq.read_table(data).to_pylist()
    with_long_prompts = data.with_name("with_long_prompts.parquet")
    write_parquet([*problems, *(with_a_long_prompt(problem) for problem in problems[:LONG_PROMPTS])], with_long_prompts)
    command = [sys.executable, "-m", "verl_aer.cli", "evaluate", str(checkpoint), "--out", str(out)]
    command += ["--data", str(with_long_prompts), "--reward", f"{inputs.data / 'reward.py'}:compute_score"]
    command += ["--n", str(TEST_SAMPLES), "--max-tokens", str(RESPONSE_LENGTH), "--batch", str(LONG_PROMPTS)]
    subprocess.run(command, check=True, timeout=300)
    evaluated = [problem.correct for problem in read_run(out)]
    assert [len(correct) for correct in evaluated] == [TEST_SAMPLES] * (len(problems) + LONG_PROMPTS)
    accuracy = [np.mean(correct) for correct in evaluated[: len(problems)]]
    validated = [np.mean(problem.correct) for problem in read_dump(dump)]
    assert len(accuracy) == len(validated) == len(PROBLEMS["val"])
    # The same policy, two draws: apart by no more than four standard errors.
    error = np.sqrt((np.var(accuracy) + np.var(validated)) / len(accuracy))
    assert abs(np.mean(accuracy) - np.mean(validated)) < 4 * error
    assert 0.1 < np.mean(accuracy) < 0.9


def with_a_long_prompt(problem: dict) -> dict:
    """A copy of the problem with 101 tokens: vLLM's step on a CPU, 4,096 tokens, ends in the middle of a prompt."""
    (message,) = problem["prompt"]
    about = problem["extra_info"]
    return problem | {
        "prompt": [message | {"content": message["content"].rjust(101, "1")}],
        "extra_info": about | {"question_id": f"{about['question_id']}, long"},
    }
