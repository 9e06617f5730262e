"""The user's reward function is called once, and cannot end or block this process."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer.integration import reward_trial
from verl_aer.integration.reward_trial import Outcome, needs_more, try_reward

ANSWER = {"data_source": "test", "solution_str": "", "ground_truth": "2", "extra_info": {"index": 0, "image": b"\x00"}}
HEADER = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, scale=1):\n    "


@pytest.fixture
def score(tmp_path: Path):
    def call(body: str, **kwargs: object) -> Outcome:
        """In this process."""
        path = tmp_path / "reward.py"
        path.write_text(HEADER + body)
        return reward_trial._call(str(path), "compute_score", kwargs, ANSWER)

    return call


@pytest.mark.parametrize(
    ("body", "kwargs", "outcome"),
    [
        ('return {"score": 1.0, "acc": 1.0}', {}, Outcome(keys=["acc", "score"])),
        ("return -1", {}, Outcome(number=-1.0)),
        ("return True", {}, Outcome(number=1.0)),
        ("import numpy; return numpy.float32(0.5)", {}, Outcome(number=0.5)),
        ("return None", {}, Outcome()),
        # Arguments of the config, as veRL merges them.
        ("return scale", {"scale": 3}, Outcome(number=3.0)),
        ("return len(solution_str) + extra_info['index'] + int(ground_truth)", {}, Outcome(number=2.0)),
    ],
)
def test_what_a_reward_returns(score, body: str, kwargs: dict[str, object], outcome: Outcome) -> None:
    assert score(body, **kwargs) == outcome


async def asynchronous(data_source, solution_str, ground_truth, extra_info=None): ...


def open_to_anything(data_source, solution_str, ground_truth, extra_info=None, **kwargs): ...


def judged(data_source, solution_str, ground_truth, extra_info, reward_router_address): ...


def tokenized(data_source, solution_str, ground_truth, extra_info, reward_model_tokenizer=None): ...


def plain(data_source, solution_str, ground_truth, extra_info=None): ...


class Asynchronous:
    async def __call__(self, data_source, solution_str, ground_truth, extra_info=None): ...


class Plain:
    def __call__(self, data_source, solution_str, ground_truth, extra_info=None): ...


@pytest.mark.parametrize("function", [asynchronous, open_to_anything, judged, tokenized, Asynchronous()])
def test_a_reward_that_says_that_it_needs_more_is_not_called(function) -> None:
    assert needs_more(function)


@pytest.mark.parametrize("function", [plain, Plain(), partial(plain, extra_info={})])
def test_a_reward_that_needs_an_answer_only_is_called(function) -> None:
    assert not needs_more(function)


def tried(tmp_path: Path, code: str) -> Outcome:
    """In another process."""
    path = tmp_path / "reward.py"
    path.write_text(code)
    return try_reward(str(path), "compute_score", {}, ANSWER)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_reward_that_hangs_is_ended_at_the_limit_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_trial, "REWARD_SECONDS", 2.0)
    code = f"""
import os, subprocess, time
{HEADER}child = subprocess.Popen(["sleep", "1000"])
    with open({str(tmp_path / "pids")!r}, "w") as file:
        file.write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(1000)
"""
    start = time.monotonic()
    assert tried(tmp_path, code) == Outcome(failure="it did not return within 2 s")
    assert time.monotonic() - start < reward_trial.START_SECONDS
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert os.getpid() not in pids
    deadline = time.monotonic() + 5
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("return solution_str.split('####')[1]", "IndexError: list index out of range"),
        ("raise SystemExit('no judge')", "SystemExit: no judge"),
        ("import os; os.kill(os.getpid(), 11)", "its process died with exit code -11"),
    ],
)
def test_a_reward_that_fails_says_how(tmp_path: Path, body: str, failure: str) -> None:
    assert tried(tmp_path, HEADER + body) == Outcome(failure=failure)


def test_a_reward_with_neighbors_and_threads_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A module beside the training script, whose folder is on this process's path; and a thread without an end.
    folder = tmp_path / "beside"
    folder.mkdir()
    (folder / "neighbor_of_reward.py").write_text("SCORE = 0.5")
    monkeypatch.syspath_prepend(folder)
    code = f"""
import neighbor_of_reward, sys, threading
{HEADER}threading.Thread(target=threading.Event().wait).start()
    print("noise")
    return neighbor_of_reward.SCORE
"""
    start = time.monotonic()
    assert tried(tmp_path, code) == Outcome(number=0.5)
    assert time.monotonic() - start < reward_trial.START_SECONDS
    assert "neighbor_of_reward" not in sys.modules


def test_a_file_that_does_not_load_says_why(tmp_path: Path) -> None:
    assert tried(tmp_path, "import no_such_judge") == Outcome(
        failure="ModuleNotFoundError: No module named 'no_such_judge'"
    )
