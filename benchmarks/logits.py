"""Compare the cost of log-probs and entropy over the vocabulary in the update with that of veRL's functions.

    python -m benchmarks.logits

Forward and backward over the same logits: veRL's `logprobs_from_logits` with its `entropy_from_logits` (the cost of a
fixed coefficient), with its chunked entropy, with the clamped entropy from top-k, mask and softmax, and without entropy
(plain GRPO); ours with an entropy on every row, on a quarter of the rows, and on no row. All alternate in one process.
Times are medians of the repeats with their spread, and ratios are relative to the first line. Memory is the peak of the
pass in addition to the logits and their gradient, which overwrites the logits if possible, as a multiple of the logits.

On a GPU the sizes are those of a real micro-batch, and one more line is a lower bound from the memory traffic: the time
to read the logits twice and write them once at the bandwidth of a copy. There the benchmark needs only torch and
Triton. Without veRL, `benchmarks.torch_reference` replaces its functions, and the header says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import DEVICE, GPU, interleaved, machine, table, timed
from verl_aer.kernels import logprob_and_entropy
from verl_aer.parts.measure import Clamped, Full

try:
    from verl.utils.torch_functional import (
        entropy_from_logits,
        entropy_from_logits_with_chunking,
        logprobs_from_logits,
    )

    THEIRS = "veRL"
except ModuleNotFoundError:
    from benchmarks.torch_reference import entropy_from_logits, entropy_from_logits_with_chunking, logprobs_from_logits

    THEIRS = "plain PyTorch"

ON_A_CPU = ((128, 32_768), (512, 32_768), (128, 151_936), (512, 151_936))
ON_A_GPU = ((2048, 32_768), (2048, 151_936), (8192, 151_936), (32_768, 151_936), (65_536, 151_936))
"""(tokens, vocabulary)."""
REPEATS = 5
TEMPERATURE = 0.8

Pass = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Function from logits (T, V) and labels (T,) to a loss."""


def theirs(entropy: Callable[[torch.Tensor], torch.Tensor] | None) -> Pass:
    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        z = logits / TEMPERATURE
        log_pi = logprobs_from_logits(z, labels, inplace_backward=entropy is None)
        return log_pi.sum() if entropy is None else log_pi.sum() - 0.01 * entropy(z).sum()

    return loss


def clamped_by_topk(logits: torch.Tensor) -> torch.Tensor:
    """Compute AEnt's clamped entropy in plain PyTorch: top-k of the lowest logits, a mask, a softmax."""
    z = logits.float()
    lowest = z.detach().topk(int(Clamped().p * z.shape[-1]), dim=-1, largest=False, sorted=False).indices
    kept = z.masked_fill(torch.zeros_like(z, dtype=torch.bool).scatter_(-1, lowest, True), -torch.inf)
    log_pi = torch.log_softmax(kept, dim=-1)
    return -(log_pi.exp() * log_pi.masked_fill(log_pi == -torch.inf, 0.0)).sum(dim=-1)


def ours(share: float, measure: Full | Clamped) -> Pass:
    """Compute an entropy on the first ``share`` of the rows."""

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = (torch.arange(len(logits), device=logits.device) < share * len(logits)).float()
        log_pi, entropy = logprob_and_entropy(logits, labels, TEMPERATURE, measure, weight, inplace=True)
        return log_pi.sum() - 0.01 * (weight * entropy).sum()

    return loss


FIXED = f"{THEIRS}, fixed coefficient"
PASSES: dict[str, Pass] = {
    FIXED: theirs(entropy_from_logits),
    f"{THEIRS}, chunked entropy": theirs(entropy_from_logits_with_chunking),
    f"{THEIRS}, no entropy": theirs(None),
    f"{THEIRS}, clamped by top-k": theirs(clamped_by_topk),
    "ours, all rows": ours(1.0, Full()),
    "ours, a quarter of the rows": ours(0.25, Full()),
    "ours, no row": ours(0.0, Full()),
    "ours, clamped, all rows": ours(1.0, Clamped()),
}
BYTES = "what the bytes need"


class _Policy(torch.autograd.Function):
    """Replace the layer below: pass the logits on, and discard their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:
        return None


def measure(tokens: int, vocabulary: int, dtype: torch.dtype) -> str:
    generator = torch.Generator(DEVICE).manual_seed(0)
    logits = torch.empty(tokens, vocabulary, dtype=dtype, device=DEVICE).normal_(std=3.0, generator=generator)
    labels = torch.randint(vocabulary, (tokens,), generator=generator, device=DEVICE)
    # The gradient overwrites this copy, which is made again for each pass and not counted.
    leaf = torch.empty_like(logits).requires_grad_()

    def run(loss: Pass) -> float:
        with torch.no_grad():
            leaf.copy_(logits)
        return timed(lambda: loss(_Policy.apply(leaf), labels).backward())

    calls: dict[str, Callable[[], float]] = {name: lambda loss=loss: run(loss) for name, loss in PASSES.items()}
    if GPU:
        # A copy reads once and writes once. Forward and backward read twice and write once.
        calls[BYTES] = lambda: 1.5 * timed(lambda: leaf.detach().copy_(logits))
    costs = interleaved(calls, REPEATS)
    size = tokens * vocabulary * dtype.itemsize
    title = f"### {tokens:,} tokens, vocabulary {vocabulary:,}, {str(dtype)[6:]}: logits of {size / 2**20:,.0f} MiB"
    return f"{title}\n\n{table(costs, FIXED, size, 'memory / logits')}\n"


def main() -> int:
    print(f"{machine()}; {THEIRS} and ours\n", flush=True)
    for dtype in (torch.bfloat16,) if GPU else (torch.float32, torch.bfloat16):
        for tokens, vocabulary in ON_A_GPU if GPU else ON_A_CPU:
            print(measure(tokens, vocabulary, dtype), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
