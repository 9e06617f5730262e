"""Compare the driver's cost of the entropy control per step with that of veRL's advantages of the same batch.

    python -m benchmarks.driver

Grouping, allocation and one controller update are compared with `compute_grpo_outcome_advantage`. Both alternate in one
process on one thread. Times are medians with the spread of the repeats.
"""

from __future__ import annotations

import platform
import statistics
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import verl
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from verl_aer import EntropyControl, parse_entropy_config
from verl_aer._tables import Table, as_text
from verl_aer.parts.allocation import allocate
from verl_aer.rollouts.groups import group_rows

ROLLOUTS = 16
PROMPTS = (4096, 16384, 65536)
RESPONSE_TOKENS = 1
"""veRL computes advantages for each token. With one token, its part is as cheap as possible."""
REPEATS = 5


class Batch(NamedTuple):
    """N trajectories of P prompts, as on the driver before the advantages are computed."""

    uid: list[str]
    session: np.ndarray
    correct: np.ndarray


def make_batch(prompts: int) -> Batch:
    """Make rows in random order, as after veRL's balancing of the ranks."""
    rng = np.random.default_rng(0)
    order = rng.permutation(prompts * ROLLOUTS)
    names = [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(prompts)]
    return Batch(
        uid=[names[row // ROLLOUTS] for row in order.tolist()],
        session=order % ROLLOUTS,
        correct=(rng.random(prompts * ROLLOUTS) < 0.4).astype(np.float64),
    )


def entropy_control(batch: Batch) -> np.ndarray:
    """Compute one weight per trajectory, and update α once."""
    config = parse_entropy_config({"method": "aer"})
    rows = len(batch.uid)
    groups = group_rows(batch.uid, batch.session, np.zeros(rows, int), batch.correct, np.zeros(rows, bool))
    weights = allocate(config.allocation, groups)
    EntropyControl(config).observe(0.5, step=1)
    return weights


def verls_advantages(batch: Batch) -> torch.Tensor:
    rewards = torch.as_tensor(batch.correct, dtype=torch.float32).unsqueeze(1).expand(-1, RESPONSE_TOKENS)
    index = np.array(batch.uid, dtype=object)
    return compute_grpo_outcome_advantage(rewards, torch.ones_like(rewards), index)[0]


def seconds(function: Callable[[Batch], object], batch: Batch) -> float:
    start = time.perf_counter()
    function(batch)
    return time.perf_counter() - start


def spread(times: list[float]) -> str:
    return f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"


def main() -> None:
    torch.set_num_threads(1)
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, veRL {verl.__version__}")
    rows = []
    for prompts in PROMPTS:
        batch = make_batch(prompts)
        ours, verls = [], []
        for _ in range(REPEATS):
            ours.append(seconds(entropy_control, batch))
            verls.append(seconds(verls_advantages, batch))
        ratio = statistics.median(ours) / statistics.median(verls)
        rows.append([f"{prompts * ROLLOUTS:,}", f"{prompts:,}", spread(ours), spread(verls), f"{ratio:.2f}"])
    header = ["trajectories", "groups", "entropy control, s", "GRPO advantages, s", "ratio"]
    print(as_text(Table("the driver's work per step", header, rows)), end="")


if __name__ == "__main__":
    main()
