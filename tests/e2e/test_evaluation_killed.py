"""`verl-aer evaluate`, killed three times, ends with exactly the samples of an uninterrupted evaluation."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from verl_aer._processes import ProcessTree

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_killed_three_times_it_has_the_samples_of_an_unbroken_run(inputs, reward, tmp_path):
    def command(name: str) -> list[str]:
        words = [sys.executable, "-m", "verl_aer.cli", "evaluate", str(inputs.model), "--out", str(tmp_path / name)]
        words += ["--data", str(inputs.data / "test.parquet"), "--n", "4", "--max-tokens", "8", "--batch", "10"]
        return [*words, "--reward", f"{inputs.data / 'reward.py'}:compute_score"]

    for batches in (2, 9, 15):
        killed_after_a_batch(command("killed"), tmp_path / "killed", batches)
    for name in ("killed", "whole"):
        subprocess.run(command(name), check=True, timeout=300)
    whole = sorted((tmp_path / "whole" / "samples").iterdir())
    assert len(whole) == 23
    for file in whole:
        assert file.read_bytes() == (tmp_path / "killed" / "samples" / file.name).read_bytes()


def killed_after_a_batch(command: list[str], out: Path, batches: int) -> None:
    """SIGKILL to the command as soon as so many batches are there; what it started ends too."""
    process = subprocess.Popen(command, start_new_session=True)
    tree = ProcessTree(process)
    deadline = time.monotonic() + 300
    while len(list((out / "samples").glob("*.jsonl"))) < batches:
        tree.watch()
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    tree.watch()
    process.kill()
    process.wait()
    assert tree.wait_until_gone(30)
