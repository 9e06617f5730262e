"""Advantage shapings: change each token's advantage before the policy loss reads it.

They run on the driver, once per step, on the advantages from veRL's estimator. Multiplying an advantage by w >= 0
multiplies its token's loss by w, because PPO's loss, clipped or not, is linear in the advantage.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator

from verl_aer._settings import at_least
from verl_aer.parts.base import Part, register_part
from verl_aer.rollouts.types import Rollouts, ShapingError, Tokens


class AdvantageShaping(Part, role="advantage_shaping"):
    """Base of advantage shapings."""

    shapes: ClassVar[bool] = True
    """Whether the advantages change; if not, they are not fetched."""

    uses_accuracy: ClassVar[bool] = True
    """Whether it reads ``rollouts.correct`` or the groups' accuracy; if not, any reward works."""

    uses_entropy: ClassVar[bool] = False
    """Whether it needs the tokens' entropies, which veRL does not have in bypass mode."""

    uses_alpha: ClassVar[bool] = False
    """Whether alpha steers the entropy through it; the simulation then models it as an entropy bonus."""

    @abstractmethod
    def shape(self, tokens: Tokens, rollouts: Rollouts, weight: np.ndarray, alpha: float) -> torch.Tensor:
        """Return A' of each token, ``(N, T)``; values outside the mask are ignored.

        Args:
            tokens: advantages, log-probs and entropies of the tokens.
            rollouts: the rows of these tokens.
            weight: ``(N,)``, the allocation's weight of each row.
            alpha: the global coefficient of this step.
        """


@register_part("none")
class NoAdvantageShaping(AdvantageShaping):
    """A' = A."""

    shapes: ClassVar[bool] = False
    uses_accuracy: ClassVar[bool] = False

    def shape(self, tokens: Tokens, rollouts: Rollouts, weight: np.ndarray, alpha: float) -> torch.Tensor:
        return tokens.advantages


@register_part("entropy_bonus")
class EntropyBonus(AdvantageShaping):
    """A' = A + w(q) * min(a * H, |A| / kappa), without a gradient through H.

    Where the policy was uncertain, good tokens count more and bad tokens count less. With kappa > 1 no advantage
    changes its sign. w(q) is the allocation's weight: CEEH-EA (arXiv 2602.22642) shapes only hard questions. It takes
    a and kappa from arXiv 2506.14758; public ports of that paper use 0.4 and 2.
    """

    uses_accuracy: ClassVar[bool] = False
    uses_entropy: ClassVar[bool] = True

    a: float = Field(default=0.4, ge=0)
    """Advantage per nat."""
    kappa: float = Field(default=2.0, gt=0)
    """The bonus is at most |A| divided by this."""

    def shape(self, tokens: Tokens, rollouts: Rollouts, weight: np.ndarray, alpha: float) -> torch.Tensor:
        assert tokens.entropy is not None, "uses_entropy"
        bonus = torch.minimum(self.a * tokens.entropy, tokens.advantages.abs() / self.kappa)
        return tokens.advantages + _column(weight, tokens) * bonus


@register_part("steer")
class Steer(AdvantageShaping):
    """A' = w * A, with a lower w for tokens whose update would change the entropy more (STEER, arXiv 2510.10150):

        Omega = A * (1 - pi) * (log pi + H)
        linear       w = highest - (|Omega| - min|Omega|) / (max|Omega| - min|Omega|) * (highest - lowest)
        exponential  w = max(lowest, exp(-k * |Omega|)),   k = -ln(lowest) / max(max|Omega|, 0.02)

    pi is the probability of the sampled token; min and max are over the tokens of the step. All values come from the
    policy of the old log-probs, so the weights do not depend on the split into micro-batches. The authors' code takes
    pi from the policy in training, and min and max from each micro-batch.
    """

    uses_accuracy: ClassVar[bool] = False
    uses_entropy: ClassVar[bool] = True

    weighting: Literal["linear", "exponential"] = "linear"
    """Which of the formulas above."""
    lowest: float = Field(default=0.8, gt=0)
    """Weight of the token that changes the entropy most; <= 1 with weighting=exponential."""
    highest: float = 1.2
    """Weight of the token that changes the entropy least, >= lowest; ignored with weighting=exponential."""

    @field_validator("lowest")
    @classmethod
    def _has_a_rate(cls, lowest: float, earlier: ValidationInfo) -> float:
        if earlier.data.get("weighting") == "exponential" and lowest > 1:
            raise ValueError("<= 1 with weighting=exponential")
        return lowest

    @field_validator("highest")
    @classmethod
    def _is_above_lowest(cls, highest: float, earlier: ValidationInfo) -> float:
        return at_least(highest, "lowest", earlier)

    def shape(self, tokens: Tokens, rollouts: Rollouts, weight: np.ndarray, alpha: float) -> torch.Tensor:
        if not tokens.mask.any():
            return tokens.advantages
        assert tokens.entropy is not None, "uses_entropy"
        pi = tokens.log_probs.exp()
        omega = (tokens.advantages * (1 - pi) * (tokens.log_probs + tokens.entropy)).abs()
        return self._weights(omega, omega[tokens.mask]) * tokens.advantages

    def _weights(self, omega: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        lowest, highest = counted.min(), counted.max()
        if self.weighting == "exponential":
            k = -math.log(self.lowest) / highest.clamp(min=0.02)
            return torch.exp(-k * omega).clamp(min=self.lowest)
        if lowest == highest:
            return torch.full_like(omega, (self.lowest + self.highest) / 2)
        return self.highest - (omega - lowest) / (highest - lowest) * (self.highest - self.lowest)


@register_part("signed")
class Signed(AdvantageShaping):
    """A' = A - alpha * |A| on tokens with pi > probability, A' = A on the others (EntroPIC, arXiv 2511.15248).

    alpha > 0 means that the entropy is too low: confident tokens are then rewarded less and punished more. alpha < 0
    does the opposite. The authors' code adds the term separately from PPO's loss, without clipping the ratio and
    averaged over only these tokens.
    """

    uses_accuracy: ClassVar[bool] = False
    uses_alpha: ClassVar[bool] = True

    probability: float = Field(default=0.95, ge=0, lt=1)
    """Only tokens more likely than this are shaped. 0.95 is the value of the authors' code."""

    def shape(self, tokens: Tokens, rollouts: Rollouts, weight: np.ndarray, alpha: float) -> torch.Tensor:
        sure = tokens.log_probs.exp() > self.probability
        return tokens.advantages - alpha * sure * tokens.advantages.abs()


def shape_advantages(
    shaping: AdvantageShaping, tokens: Tokens, rollouts: Rollouts, weight: np.ndarray, alpha: float
) -> torch.Tensor:
    """Apply ``shaping`` inside the mask, and keep the advantages outside it.

    Raises ShapingError if the result does not have the shape ``(N, T)`` or is not finite inside the mask.
    """
    shaped = shaping.shape(tokens, rollouts, weight, alpha)
    name = f"advantage shaping {shaping.kind!r}"
    if shaped.shape != tokens.advantages.shape:
        raise ShapingError(f"{name} returned shape {tuple(shaped.shape)} for {tuple(tokens.advantages.shape)}")
    shaped = torch.where(tokens.mask, shaped.to(tokens.advantages.dtype), tokens.advantages)
    bad = (tokens.mask & ~torch.isfinite(shaped)).nonzero()
    if len(bad):
        row, token = bad[0].tolist()
        raise ShapingError(f"{name} returned {shaped[row, token]:g} for token {token} of row {row}; it must be finite")
    return shaped


def _column(values: np.ndarray, tokens: Tokens) -> torch.Tensor:
    return torch.as_tensor(values, dtype=tokens.advantages.dtype)[:, None]
