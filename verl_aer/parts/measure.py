"""Measures: compute an entropy of a token's distribution, in nats.

The controller gets the measure named by ``entropy.measure``. The loss pushes the measure named by ``entropy.pushed``.
Most methods use one measure for both.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch.autograd.function import once_differentiable

from verl_aer.parts.base import Part, register_part


class Pushed(Part, role="pushed"):
    """Base of the options for the pushed entropy: the measures, and ``same``."""


@register_part("same")
class Same(Pushed):
    """The loss pushes the measure that the controller gets."""


class Measure(Pushed, role="measure"):
    """Base of measures: a function from logits to one entropy per token."""

    from_log_probs: ClassVar[bool] = False
    """Whether it depends only on the sampled token's probability; veRL's log-probs are then enough."""

    @abstractmethod
    def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the entropy of each token's distribution, nats, differentiable.

        Args:
            logits: z, ``(T, V)``, already divided by the sampling temperature; -inf excludes an entry.
            labels: ``(T,)`` int64, the sampled tokens; only the measure ``sampled`` reads them.

        Returns:
            ``(T,)`` nats, at least float32: sums in bfloat16 over a large vocabulary are off by a tenth of a nat. A
            row that is no distribution gets NaN and a NaN gradient: a row with NaN or +inf, or with only -inf.
        """


@register_part("full")
class Full(Measure):
    """H = -sum_v pi_v log pi_v with pi = softmax(z): Shannon entropy over the whole vocabulary."""

    def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Compute H in [0, log V].

        >>> torch.exp(Full().entropy(torch.zeros(1, 4)))
        tensor([4.])
        """
        return _Shannon.apply(_at_least_float32(logits))


@register_part("clamped")
class Clamped(Measure):
    """Shannon entropy without the least likely tokens of the vocabulary (AEnt, arXiv 2509.03493).

        k  = floor(p * V)
        R  = the k tokens of lowest logit; of equal logits, the lower index first
        H~ = -sum_{v in K} pi~_v log pi~_v,   K = V without R,   pi~ = softmax of z over K

    The measure cuts the tail. For a peaked distribution H~ is nearly H, but the tail gets no gradient, so it cannot
    grow. V counts the entries that are not -inf; padded columns of the vocabulary do not count. R is chosen without a
    gradient.
    """

    p: float = Field(default=0.2, ge=0, lt=1)
    """Share of the vocabulary, the least likely tokens, that is excluded; 0 is ``full``. 0.2 is the default of AEnt's
    code."""

    def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Compute H~ in [0, log(V - k)].

        >>> logits = torch.log(torch.tensor([[0.1, 0.3, 0.3, 0.3]]))
        >>> torch.exp(Clamped(p=0.25).entropy(logits))
        tensor([3.])
        """
        z = _at_least_float32(logits)
        return _Shannon.apply(_without(z, _lowest(z.detach(), self.p)))


@register_part("nucleus")
class Nucleus(Measure):
    """Shannon entropy of the nucleus, the smallest set of tokens that holds mass p (SIREN, arXiv 2509.25133).

        K  = the fewest most likely tokens with sum_{v in K} pi_v >= p; of equal ones, the lower index first
        H~ = -sum_{v in K} pi~_v log pi~_v,   pi~ = softmax of z over K

    K is chosen without a gradient.
    """

    p: float = Field(default=0.8, gt=0, le=1)
    """Probability mass of the tokens that are kept; 1 is ``full``. 0.8 is the paper's value."""

    def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Compute H~ in [0, H].

        >>> logits = torch.log(torch.tensor([[0.1, 0.4, 0.1, 0.4]]))
        >>> torch.exp(Nucleus(p=0.8).entropy(logits))
        tensor([2.])
        """
        z = _at_least_float32(logits)
        return _Shannon.apply(_without(z, _outside_nucleus(z.detach(), self.p)))


@register_part("sampled")
class Sampled(Measure):
    """H^ = -log pi(sampled token), the estimate of the entropy from one sample (Skywork-OR1, CEEH).

    Its mean is H only if the token was sampled from the same policy, at the same temperature and without top-p. Its
    gradient is that of the log-likelihood, not that of the entropy: pushing it up makes the sampled tokens less
    likely. On-policy this gradient is zero in expectation. As the pushed measure it therefore acts only off-policy,
    from the second mini-batch of a step on; with one mini-batch per step it adds only noise. As the controller's
    measure it is always usable.
    """

    from_log_probs: ClassVar[bool] = True

    def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Compute H^ >= 0.

        >>> torch.exp(Sampled().entropy(torch.zeros(1, 4), labels=torch.tensor([2])))
        tensor([4.])
        """
        if labels is None:
            raise ValueError("the measure 'sampled' needs the sampled tokens: entropy(logits, labels)")
        return -torch.log_softmax(_at_least_float32(logits), dim=-1).gather(-1, labels[:, None]).squeeze(-1)


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _finite(y: torch.Tensor) -> torch.Tensor:
    """Clamp y at -10000: 0 * -inf would be NaN, and e^-10000 is 0 in every floating type."""
    return y.clamp(min=-1e4)


class _Shannon(torch.autograd.Function):
    """Shannon entropy of each row, with y = z - max(z) <= 0 and s the sum of e^y without the most likely token:

        H        = log(1 + s) - E[y],   E[y] = sum_v pi_v y_v <= 0
        dH/dz_j  = -pi_j (y_j - E[y])

    Both terms of H are >= 0 and the gradient contains no log-probability, so no digits cancel. In float32,
    logsumexp(z) - sum_v pi_v z_v loses every digit if one token has nearly all the probability, and
    -pi_j (log pi_j + H) if all tokens have the same probability.
    """

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
        top = z.max(dim=-1, keepdim=True)
        y = z - top.values
        others = y.exp().scatter_(-1, top.indices, 0.0)  # e^y, 0 at the most likely token
        s = others.sum(dim=-1, keepdim=True)
        mean_y = (others * _finite(y)).sum(dim=-1, keepdim=True) / (1.0 + s)
        log_sum = s.log1p()
        ctx.save_for_backward(z, top.values, log_sum, mean_y)
        return (log_sum - mean_y).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, top, log_sum, mean_y = ctx.saved_tensors
        y = z - top
        pi = (y - log_sum).exp()
        return -grad.unsqueeze(-1) * pi * (_finite(y) - mean_y)


def _without(z: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
    """Return z with -inf at the excluded entries; a row that is no distribution is not changed."""
    return z.masked_fill(left_out & z.detach().amax(dim=-1, keepdim=True).isfinite(), -math.inf)


def _lowest(z: torch.Tensor, p: float) -> torch.Tensor:
    """Select the floor(p * V) lowest entries of each row and the entries of -inf, ``(T, V)`` bool."""
    excluded = torch.isneginf(z).sum(dim=-1)
    # In float64, as in Python: floor(p * V) must not depend on the type of the logits.
    k = (p * (z.shape[-1] - excluded).double()).floor().long() + excluded
    last = (k - 1).clamp(min=0)[:, None]
    threshold = z.sort(dim=-1).values.gather(-1, last)
    below, equal = z < threshold, z == threshold
    wanted = (k - below.sum(dim=-1))[:, None]
    return below | (equal & (equal.cumsum(dim=-1) <= wanted))


def _outside_nucleus(z: torch.Tensor, p: float) -> torch.Tensor:
    """Select all entries outside the smallest set of mass p, ``(T, V)`` bool."""
    if p >= 1:
        return torch.isneginf(z)
    ordered, order = z.sort(dim=-1, descending=True, stable=True)
    # In float64: the error of float32 sums over a large vocabulary would shift the set by whole tokens.
    pi = torch.softmax(ordered.double(), dim=-1)
    mass_before = pi.cumsum(dim=-1) - pi
    return torch.empty_like(z, dtype=torch.bool).scatter_(-1, order, mass_before >= p)
