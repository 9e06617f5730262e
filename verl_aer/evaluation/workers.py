"""Start and watch the worker processes of an evaluation, one per copy of the model."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from verl_aer._failure import explain_failure
from verl_aer._processes import GRACE_SECONDS, ProcessTree
from verl_aer._progress import ProgressDisplay
from verl_aer.errors import InputError
from verl_aer.evaluation.config import EvaluationConfig
from verl_aer.evaluation.samples import EvalProblem, SampleStore

# multiprocessing's spawn would import the caller's main module again, which breaks scripts without a guard.
WORKER_COMMAND = [sys.executable, "-m", "verl_aer.evaluation.worker"]
POLL_SECONDS = 0.5


class WorkerTask(NamedTuple):
    """Pickled input of a worker. batches: numbers of its batches. parent: pid of its parent."""

    config: EvaluationConfig
    batches: list[int]
    parent: int


class Worker:
    """A running worker process and its descendants."""

    def __init__(self, task: WorkerTask, devices: Sequence[str], log: Path) -> None:
        """Start the process. devices: the GPUs that it sees; empty: all."""
        self.batches = task.batches
        self.log = log
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {})}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                WORKER_COMMAND,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.tree = ProcessTree(self.process)
        self.process.stdin.write(pickle.dumps(task))
        self.process.stdin.close()


def sample_with_workers(config: EvaluationConfig, batches: Sequence[Sequence[EvalProblem]], store: SampleStore) -> None:
    """Sample the missing batches.

    Raises:
        InputError: too few GPUs, or a worker that ended before its batches were complete. The other workers are ended.
    """
    devices = _devices_of_workers(config)
    missing = store.missing(len(batches))
    answers = {number: len(batches[number]) * config.sampling.n for number in missing}
    display = ProgressDisplay(total=len(missing))
    workers: list[Worker] = []
    try:
        for place, own in enumerate(devices):
            task = WorkerTask(config, missing[place :: len(devices)], os.getpid())
            if task.batches:
                workers.append(Worker(task, own, config.folder / f"worker-{place}.log"))
        display.note(f"whole output: {workers[0].log}")
        with display:
            while missing:
                time.sleep(POLL_SECONDS)
                for worker in workers:
                    worker.tree.watch()
                ended = [worker for worker in workers if worker.process.poll() is not None]
                missing = store.missing(len(batches))
                done = [answers[number] for number in answers.keys() - missing]
                display.show(len(done), f"batches, {sum(done):,} answers" if done else "loading the model")
                for worker in ended:
                    if set(worker.batches) & set(missing):
                        raise InputError("\n".join(explain_failure(worker.process.returncode, worker.log)))
        for worker in workers:
            worker.tree.wait_until_gone(GRACE_SECONDS)
    finally:
        for worker in workers:
            worker.tree.end()
            worker.process.wait()


def _devices_of_workers(config: EvaluationConfig) -> list[list[str]]:
    """Divide the visible GPUs among the workers. A single worker gets all GPUs that vLLM finds.

    Raises:
        InputError: there are too few GPUs.
    """
    if config.data_parallel == 1:
        return [[]]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(number) for number in range(_gpus())]
    size = config.tensor_parallel
    # Without GPUs, all workers share the CPU.
    if devices and len(devices) < config.data_parallel * size:
        raise InputError(
            f"--data-parallel {config.data_parallel} times --tensor-parallel {size} needs "
            f"{config.data_parallel * size} GPUs, there are {len(devices)}"
        )
    return [devices[start : start + size] for start in range(0, config.data_parallel * size, size)]


def _gpus() -> int:
    # Imported here: the import takes seconds.
    import torch

    return torch.cuda.device_count()
