"""Compare linear layer, log-probs and entropy of veRL's fused PyTorch kernel, which never has all logits, with ours.

    python -m benchmarks.fused

Forward and backward from hidden states and the weights of the last layer. veRL's fused path computes the logits in
chunks, twice. Our path computes all logits at once. Our engine keeps the fused path if a user selects it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from verl.utils.experimental.torch_functional import FusedLinearForPPO
from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

from benchmarks.timing import DEVICE, interleaved, machine, table, timed
from verl_aer.kernels import logprob_and_entropy

TOKENS, HIDDEN, VOCABULARY = 1024, 512, 151_936
REPEATS = 3

Pass = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Function from hidden states (T, D), weights (V, D) and labels (T,) to log-probs and entropies (T,)."""


def unfused(hidden: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = hidden @ weights.t()
    return logprobs_from_logits(logits, labels, inplace_backward=False), entropy_from_logits(logits)


def ours(hidden: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logprob_and_entropy(hidden @ weights.t(), labels, inplace=True)


PASSES: dict[str, Pass] = {
    "veRL, unfused": unfused,
    "veRL, fused": FusedLinearForPPO(),
    "linear layer and ours": ours,
}


def main() -> int:
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, device=DEVICE).requires_grad_()
    weights = torch.randn(VOCABULARY, HIDDEN, generator=generator, device=DEVICE).div_(8).requires_grad_()
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator, device=DEVICE)

    def run(forward: Pass) -> float:
        def both_ways() -> None:
            log_pi, entropy = forward(hidden, weights, labels)
            torch.autograd.grad(log_pi.sum() - 0.01 * entropy.sum(), (hidden, weights))

        return timed(both_ways)

    costs = interleaved({name: lambda forward=forward: run(forward) for name, forward in PASSES.items()}, REPEATS)
    print(f"{machine()}\n\n### {TOKENS:,} tokens, hidden size {HIDDEN}, vocabulary {VOCABULARY:,}, float32\n")
    print(table(costs, "veRL, unfused", 4 * TOKENS * VOCABULARY, "memory / logits"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
