"""Functionals: what "entropy" of a token's distribution is measured and pushed, in nats."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verl_aer.methods.registry import Part, register_functional


class Functional(Part):
    """Base of functionals: from logits to one entropy per token."""

    def entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Entropy of each token's distribution, ``(T, V)`` logits to ``(T,)`` nats, differentiable."""
        raise NotImplementedError


@register_functional("full")
@dataclass
class Full(Functional):
    """H = logsumexp(z) - sum_v pi_v z_v with pi = softmax(z): Shannon entropy over the whole vocabulary."""

    def entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """H = logsumexp(z) - sum_v pi_v z_v.

        Args:
            logits: z, ``(T, V)``, already divided by the sampling temperature; -inf excludes an entry.

        Returns:
            ``(T,)`` nats in [0, log V], differentiable; float32 where the logits are narrower. In bfloat16
            over a large vocabulary the sums are off by a tenth of a nat.

        >>> torch.exp(Full().entropy(torch.zeros(1, 4)))
        tensor([4.])
        """
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        pi = torch.softmax(z, dim=-1)
        # 0 * -inf is NaN, and an excluded entry adds nothing.
        return torch.logsumexp(z, dim=-1) - (pi * torch.where(pi > 0, z, 0)).sum(dim=-1)
