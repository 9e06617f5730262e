"""A worker process of an evaluation: it loads one copy of the model and samples its share of the batches.

`workers.py` starts it with ``python -m verl_aer.evaluation.worker`` and sends it a `WorkerTask`.
"""

from __future__ import annotations

import pickle
import sys

from verl_aer._processes import die_with_parent
from verl_aer.evaluation.merge_checkpoint import loadable_model
from verl_aer.evaluation.run import load_reward, open_evaluation, sample_batches
from verl_aer.evaluation.sampler import Sampler
from verl_aer.evaluation.workers import WorkerTask


def work(task: WorkerTask) -> None:
    """Sample the batches of a task. The process ends with its parent."""
    die_with_parent(task.parent)
    config = task.config
    reward = load_reward(config.reward)
    batches, store = open_evaluation(config)
    sampler = Sampler(loadable_model(config.model), config.sampling, config.tensor_parallel)
    sample_batches(batches, task.batches, store, sampler, reward)


if __name__ == "__main__":
    work(pickle.load(sys.stdin.buffer))
