"""What the update pays for log-probs and entropy over the vocabulary, against veRL's own functions.

    python -m benchmarks.logits

Forward and backward over the same logits: veRL's `logprobs_from_logits` with its `entropy_from_logits` (what a fixed
coefficient costs), with its chunked entropy, with the clamped entropy of a top-k, a mask and a softmax, and without any
entropy (plain GRPO); ours with an entropy on every row, on a quarter of them, and on none. They take turns in one
process; times are medians of the repeats with their spread, and ratios are against the first. Memory is the most that
the pass held beside the logits, as a multiple of the logits.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import verl
from verl.utils.torch_functional import (
    entropy_from_logits,
    entropy_from_logits_with_chunking,
    logprobs_from_logits,
)

from verl_aer.functional import Clamped, Full
from verl_aer.kernels import logprob_and_entropy

SHAPES = ((128, 32_768), (512, 32_768), (128, 151_936), (512, 151_936))
"""Tokens and vocabulary."""
REPEATS = 5
TEMPERATURE = 0.8

Pass = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (T, V) and labels (T,) to a loss."""


class Cost(NamedTuple):
    """Seconds of each repeat, and bytes held beside the logits."""

    seconds: list[float]
    extra_bytes: int


def verls(entropy: Callable[[torch.Tensor], torch.Tensor] | None) -> Pass:
    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        z = logits / TEMPERATURE
        log_pi = logprobs_from_logits(z, labels, inplace_backward=entropy is None)
        return log_pi.sum() if entropy is None else log_pi.sum() - 0.01 * entropy(z).sum()

    return loss


def clamped_by_topk(logits: torch.Tensor) -> torch.Tensor:
    """AEnt's clamped entropy as plain PyTorch has it: top-k of the lowest, a mask, a softmax."""
    z = logits.float()
    lowest = z.detach().topk(int(Clamped().p * z.shape[-1]), dim=-1, largest=False, sorted=False).indices
    kept = z.masked_fill(torch.zeros_like(z, dtype=torch.bool).scatter_(-1, lowest, True), -torch.inf)
    log_pi = torch.log_softmax(kept, dim=-1)
    return -(log_pi.exp() * log_pi.masked_fill(log_pi == -torch.inf, 0.0)).sum(dim=-1)


def ours(share: float, functional: Full | Clamped) -> Pass:
    """With an entropy on the first ``share`` of the rows."""

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = (torch.arange(len(logits)) < share * len(logits)).float()
        log_pi, entropy = logprob_and_entropy(logits, labels, TEMPERATURE, functional, weight, inplace=True)
        return log_pi.sum() - 0.01 * (weight * entropy).sum()

    return loss


PASSES: dict[str, Pass] = {
    "veRL, fixed coefficient": verls(entropy_from_logits),
    "veRL, chunked entropy": verls(entropy_from_logits_with_chunking),
    "veRL, no entropy": verls(None),
    "veRL, clamped by top-k": verls(clamped_by_topk),
    "ours, all rows": ours(1.0, Full()),
    "ours, a quarter of the rows": ours(0.25, Full()),
    "ours, no row": ours(0.0, Full()),
    "ours, clamped, all rows": ours(1.0, Clamped()),
}


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """The process's memory above its start, sampled every millisecond: [bytes] when it is over."""
    page, statm, found, over = 4096, Path("/proc/self/statm"), [0], threading.Event()

    def resident() -> int:
        return int(statm.read_text().split()[1]) * page

    start = resident()

    def sample() -> None:
        while not over.wait(0.001):
            found[0] = max(found[0], resident() - start)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def run_once(loss: Pass, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Seconds of one forward and backward pass; the gradient is dropped as the layer below would drop it."""
    leaf = logits.clone().requires_grad_()
    start = time.perf_counter()
    loss(_Policy.apply(leaf), labels).backward()
    return time.perf_counter() - start


def extra_bytes(loss: Pass, logits: torch.Tensor, labels: torch.Tensor) -> int:
    """The most that one pass held beside the logits."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    leaf = logits.clone().requires_grad_()
    with peak_bytes() as peak:
        loss(_Policy.apply(leaf), labels).backward()
    return peak[0]


class _Policy(torch.autograd.Function):
    """Stands for the layer below: it hands the logits on, and takes their gradient without keeping it."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:
        return None


def measure(tokens: int, vocabulary: int, dtype: torch.dtype) -> dict[str, Cost]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(tokens, vocabulary, generator=generator)).to(dtype)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    seconds: dict[str, list[float]] = {name: [] for name in PASSES}
    extra: dict[str, int] = {}
    for repeat in range(REPEATS + 1):
        for name, loss in PASSES.items():
            gc.collect()
            if repeat == 0:
                extra[name] = extra_bytes(loss, logits, labels)
            else:
                seconds[name].append(run_once(loss, logits, labels))
    return {name: Cost(seconds[name], extra[name]) for name in PASSES}


def main() -> int:
    machine, threads = platform.processor() or platform.machine(), torch.get_num_threads()
    print(f"{machine}, {threads} threads, torch {torch.__version__}, veRL {verl.__version__}")
    for dtype in (torch.float32, torch.bfloat16):
        for tokens, vocabulary in SHAPES:
            costs = measure(tokens, vocabulary, dtype)
            base = statistics.median(costs["veRL, fixed coefficient"].seconds)
            wide = tokens * vocabulary * dtype.itemsize
            print(f"\n{tokens} tokens, vocabulary {vocabulary}, {dtype}: logits {wide / 2**20:.0f} MiB")
            print(f"{'':30}{'ms':>9}{'spread':>16}{'ratio':>8}{'memory':>9}")
            for name, cost in costs.items():
                ms = [1000 * value for value in cost.seconds]
                spread = f"{min(ms):.0f}..{max(ms):.0f}"
                ratio = statistics.median(cost.seconds) / base
                print(f"{name:30}{statistics.median(ms):9.0f}{spread:>16}{ratio:8.2f}{cost.extra_bytes / wide:9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
