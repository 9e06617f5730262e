"""Regularizers: add a token's entropy to the loss.

    L = L_policy - alpha * agg(w * s * value(H, signal))

w is the weight of the trajectory and s the weight of the token. The workers compute the value from the entropy and the
``signal``: a few numbers about the step, sent by the driver with alpha.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field

from verl_aer.parts.base import Part, register_part
from verl_aer.parts.target import Bounds


class Regularizer(Part, role="regularizer"):
    """Base of regularizers; by default a regularizer needs no signal."""

    uses_target: ClassVar[bool] = False
    """Whether the signal depends on the target; if so, the target must not be ``none``."""

    def signal(self, entropy: float | None, bounds: Bounds | None, step: int) -> dict[str, float]:
        """Compute the signal of a global step on the driver, before the update; a pure function.

        Args:
            entropy: H_t of the rollouts that the step trains on, nats per token; None if not known yet.
            bounds: the target range; None if there is none yet.
            step: counted from 1.
        """
        return {}

    @abstractmethod
    def value(self, entropy: torch.Tensor, signal: Mapping[str, float]) -> torch.Tensor:
        """Compute the term that is averaged and multiplied by alpha, nats, in the shape of ``entropy`` (nats)."""

    def slope(self, entropy: torch.Tensor, signal: Mapping[str, float]) -> torch.Tensor:
        """Compute d value / d entropy of each token, in the shape of ``entropy``; 1 for a plain bonus."""
        with torch.enable_grad():
            leaf = entropy.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.value(leaf, signal).sum(), leaf)
        return slope


@register_part("bonus")
class Bonus(Regularizer):
    """value = H: L = L_policy - alpha * agg(w * H), the entropy bonus."""

    def value(self, entropy: torch.Tensor, signal: Mapping[str, float]) -> torch.Tensor:
        return entropy


@register_part("none")
class NoRegularizer(Regularizer):
    """value = 0: no entropy term, for methods that only shape rewards or advantages."""

    def value(self, entropy: torch.Tensor, signal: Mapping[str, float]) -> torch.Tensor:
        return torch.zeros_like(entropy)

    def slope(self, entropy: torch.Tensor, signal: Mapping[str, float]) -> torch.Tensor:
        return torch.zeros_like(entropy)


@register_part("squared_anchor")
class SquaredAnchor(Regularizer):
    """L = L_policy + alpha * (Hbar_t - H*)^2, linearized at the step's rollouts (SIREN, arXiv 2509.25133):

        value = pull * H,   pull = 2 * (H* - Hbar_t)

    Hbar_t is the token mean of the step, so the gradient does not depend on the split into micro-batches. The authors'
    code squares the mean of each micro-batch, which does depend on it. The pull is 0 until H* is known.

    >>> SquaredAnchor().signal(entropy=0.3, bounds=Bounds(0.5, 0.5), step=2)
    {'pull': 0.4}
    """

    uses_target: ClassVar[bool] = True

    def signal(self, entropy: float | None, bounds: Bounds | None, step: int) -> dict[str, float]:
        if entropy is None or bounds is None:
            return {"pull": 0.0}
        return {"pull": 2.0 * (min(max(entropy, bounds.low), bounds.high) - entropy)}

    def value(self, entropy: torch.Tensor, signal: Mapping[str, float]) -> torch.Tensor:
        return signal["pull"] * entropy


@register_part("history_hinge")
class HistoryHinge(Regularizer):
    """value = H - beta_k * weight * [max(0, low - H) + max(0, H - high)] (EPO, arXiv 2509.22576):

        beta_k = 1 + exp(-gamma * k / k_mid),   k_mid = floor(total_steps / 2),   k = 0 in the first step

    low and high are the bounds of the target, ``history`` in EPO. Each token outside them is pulled back. beta_k falls
    from 2 towards 1, so the hinge is strongest early. There is no hinge until the bounds are known.

    >>> hinge = HistoryHinge(weight=0.1, gamma=0.0)
    >>> hinge.value(torch.tensor([0.5, 1.0, 3.0]), hinge.signal(None, Bounds(0.75, 2.0), step=1))
    tensor([0.4500, 1.0000, 2.8000])
    """

    uses_target: ClassVar[bool] = True

    weight: float = Field(default=0.1, ge=0)
    """Weight of the hinge outside the band; the paper uses 0.1 (ALFWorld) and 0.05 (ScienceWorld)."""
    gamma: float = Field(default=3.0, ge=0)
    """Rate at which beta_k falls from 2 towards 1; 0 keeps it at 2."""
    total_steps: int | None = Field(default=None, ge=2)
    """Length of the schedule of beta_k in global steps; null uses the length of the run."""

    def signal(self, entropy: float | None, bounds: Bounds | None, step: int) -> dict[str, float]:
        if bounds is None:
            return {"weight": 0.0, "low": 0.0, "high": 0.0}
        return {"weight": self._beta(step) * self.weight, "low": bounds.low, "high": bounds.high}

    def value(self, entropy: torch.Tensor, signal: Mapping[str, float]) -> torch.Tensor:
        outside = (signal["low"] - entropy).clamp(min=0) + (entropy - signal["high"]).clamp(min=0)
        return entropy - signal["weight"] * outside

    def _beta(self, step: int) -> float:
        if self.gamma == 0:
            return 2.0
        if self.total_steps is None:
            raise ValueError("entropy.regularizer.total_steps is not known; set it to the run's number of steps")
        return 1.0 + math.exp(-self.gamma * (step - 1) / (self.total_steps // 2))
