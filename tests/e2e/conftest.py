"""The real stack with a small policy: data, a randomly initialized model, and runs of veRL's command."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from examples.countdown import settings
from examples.countdown.train import Run, accelerator_is_here, training_command, training_environment
from tests.small_run import SMALL, command_line, logged_steps, make_inputs
from verl_aer._processes import ProcessTree

START_SECONDS = 500
"""Most that a run may take to its first step, on two busy cores."""


@dataclass
class Inputs:
    data: Path
    model: Path


@pytest.fixture(scope="session")
def inputs() -> Iterator[Inputs]:
    folder = Path(tempfile.mkdtemp(prefix="aer", dir="/tmp"))
    make_inputs(folder, train_rows=512)
    yield Inputs(data=folder / "data", model=folder / "model")
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Training:
    """A running or ended run of `verl.trainer.main_ppo`, and every process that it started."""

    run: Run
    process: subprocess.Popen
    tree: ProcessTree = field(init=False)

    def __post_init__(self) -> None:
        self.tree = ProcessTree(self.process)

    def wait_for(self, happened: Callable[[], bool], seconds: float) -> None:
        """Until ``happened()``; fails, with the log's end, if the run ends or the time is over before."""
        deadline = time.monotonic() + seconds
        while not happened():
            self.tree.watch()
            assert self.process.poll() is None, f"the run ended early:\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.log[-3000:]}"
            time.sleep(0.2)

    def wait(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.tree.watch()
            assert time.monotonic() < deadline, f"no end within {seconds} s:\n{self.log[-3000:]}"
            time.sleep(0.2)
        return self.process.returncode

    def leaves_nothing(self, seconds: float) -> bool:
        return self.tree.wait_until_gone(seconds)

    @property
    def log(self) -> str:
        return self.run.log.read_text(errors="replace")

    @property
    def steps(self) -> list[dict]:
        """The metrics of each step that is logged so far."""
        return logged_steps(self.run.metrics)

    def pids_named(self, name: str) -> list[int]:
        return [pid for pid in self.tree.watch() if name in command_line(pid)]


REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    '''Right or wrong by the answer's length: an untrained policy has groups of every accuracy.'''
    right = float(len(solution_str) % 2)
    return {"score": right, "acc": right}
"""


@pytest.fixture(scope="session")
def reward(inputs: Inputs) -> str:
    path = inputs.data / "reward.py"
    path.write_text(REWARD)
    return f"reward.custom_reward_function.path={path}"


@pytest.fixture
def train(inputs: Inputs, tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """Starts a run: ``train("name", "aer", steps=3, overrides...)``; None for a method is a run of veRL's own.

    What is left at the end is killed.
    """
    with trainings(inputs, tmp_path) as start:
        yield start


def stock_command(run: Run, steps: int, overrides: Sequence[str]) -> list[str]:
    """A run of veRL's own, with the package installed and nothing of it asked for but, without a GPU, a device."""
    return [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        *(["+hardware=cpu"] if not accelerator_is_here() else []),
        *settings.verl_overrides(run.data, run.model, seed=0, steps=steps),
        "trainer.logger=[console,file]",
        f"trainer.default_local_dir={run.folder}/checkpoints",
        "trainer.resume_mode=disable",
        f"hydra.run.dir={run.folder}/hydra",
        *overrides,
    ]


@contextmanager
def trainings(inputs: Inputs, folder: Path) -> Iterator[Callable[..., Training]]:
    started: list[Training] = []

    def start(
        name: str,
        entropy: str | None,
        *overrides: str,
        steps: int,
        environment: Mapping[str, str] | None = None,
    ) -> Training:
        run = Run(folder=folder / name, data=inputs.data, model=inputs.model)
        run.folder.mkdir()
        if entropy is None:
            command = stock_command(run, steps, [*SMALL, *overrides])
        else:
            command = training_command(run, entropy, seed=0, steps=steps, overrides=[*SMALL, *overrides])
        with training_environment(run) as own, run.log.open("wb") as log:
            short = str(inputs.data.parent)
            process = subprocess.Popen(
                command,
                env={**own, "RAY_TMPDIR": short, "TMPDIR": short, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(Training(run, process))
        return started[-1]

    try:
        yield start
    finally:
        for training in started:
            training.tree.end()
