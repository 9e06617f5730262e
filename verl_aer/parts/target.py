"""Targets: which token-mean entropy is wanted, in nats per token: a level, a band, or none."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from verl_aer._settings import at_least
from verl_aer.parts.base import Part, register_part


class Bounds(NamedTuple):
    """The wanted entropies, nats per token; both ends are equal where a single level is wanted.

    >>> [Bounds(low=0.1, high=0.5).level(entropy) for entropy in (0.05, 0.3, 0.9)]
    [0.1, 0.3, 0.5]
    """

    low: float
    high: float

    def level(self, entropy: float | None) -> float | None:
        """Return H* = clip(H_t, low, high): where an entropy should go, nats per token.

        ``entropy``: H_t, nats per token; None before the first, and then a band has no level.
        """
        if self.low == self.high:
            return self.low
        return None if entropy is None else min(max(entropy, self.low), self.high)


class Target(Part, role="target"):
    """Base of targets: a level H* or a band of them, possibly relative to entropies seen before."""

    @property
    def needs_anchor(self) -> bool:
        """Whether the target is relative to H0; it then has fields ``initial_entropy`` and ``anchor_steps``."""
        return False

    @abstractmethod
    def bounds(self, initial_entropy: float | None, history: float | None) -> Bounds | None:
        """The wanted entropies; None where there is no target, or none yet.

        Args:
            initial_entropy: H0, nats per token; None until it is known.
            history: mean of the entropies of all earlier steps, nats per token; None in the first step.
        """


@register_part("none")
class NoTarget(Target):
    """No level is wanted: for a coefficient that does not move."""

    def bounds(self, initial_entropy: float | None, history: float | None) -> None:
        return None


@register_part("absolute")
class Absolute(Target):
    """H* = entropy: one number of nats, the same for every model and temperature."""

    entropy: float = Field(0.2, gt=0)
    """Wanted token-mean entropy, nats per token. 0.2 is the level of Skywork-OR1's released scripts and of TRL's
    default."""

    def bounds(self, initial_entropy: float | None, history: float | None) -> Bounds:
        return Bounds(self.entropy, self.entropy)


@register_part("band")
class Band(Target):
    """H* = clip(H_t, low, high): any entropy in the band is as good as another (AEnt, arXiv 2509.03493).

    0.1 and 0.5 are the defaults of AEnt's code. Its GSM8K example has 0.05 and 0.23, and says that the results are
    sensitive to these two only.
    """

    low: float = Field(0.1, ge=0)
    """Lowest entropy that leaves alpha unchanged, nats per token."""
    high: float = 0.5
    """Highest entropy that leaves alpha unchanged, nats per token; >= low."""

    @field_validator("high")
    @classmethod
    def _is_above_low(cls, high: float, earlier: ValidationInfo) -> float:
        return at_least(high, "low", earlier)

    def bounds(self, initial_entropy: float | None, history: float | None) -> Bounds:
        return Bounds(self.low, self.high)


@register_part("anchored")
class Anchored(Target):
    """H* = tau * H0: a fixed share of the initial policy's entropy.

    H0 is the token-mean entropy of the first rollouts ever trained on, measured as every later step's is,
    kept with the checkpoint and never measured again. Our reading of AER (arXiv 2510.10959): a target below
    the initial level; tau about 0.4 is the only value reported, second-hand.

    >>> Anchored(tau=0.4).bounds(initial_entropy=0.5, history=None)
    Bounds(low=0.2, high=0.2)
    """

    tau: float = Field(0.4, gt=0, le=1)
    """Wanted share of the initial entropy H0."""
    initial_entropy: float | None = Field(None, gt=0)
    """H0, nats per token, if already known; null measures it. On resume a number replaces the saved H0, and null
    keeps it."""
    anchor_steps: int = Field(1, ge=1)
    """H0 is the mean over this many first steps; alpha does not move before they are over."""

    @property
    def needs_anchor(self) -> bool:
        return True

    def bounds(self, initial_entropy: float | None, history: float | None) -> Bounds | None:
        if initial_entropy is None:
            return None
        level = self.tau * initial_entropy
        return Bounds(level, level)


@register_part("history")
class History(Target):
    """H* = clip(H_t, kappa_low * H_W, kappa_high * H_W), H_W the mean entropy of all earlier steps (EPO).

    The mean is over the whole run and not over a window, so that the band moves less and less. There is none in the
    first step. Source: arXiv 2509.22576, with 0 and 2 in its tables: entropies are then only kept from above.

    >>> History(kappa_low=0.5, kappa_high=2.0).bounds(initial_entropy=None, history=0.25)
    Bounds(low=0.125, high=0.5)
    """

    kappa_low: float = Field(0.0, ge=0)
    """Lowest entropy, as a share of H_W"""
    kappa_high: float = 2.0
    """Highest entropy, as a share of H_W; >= kappa_low."""

    @field_validator("kappa_high")
    @classmethod
    def _is_above_low(cls, kappa_high: float, earlier: ValidationInfo) -> float:
        return at_least(kappa_high, "kappa_low", earlier)

    def bounds(self, initial_entropy: float | None, history: float | None) -> Bounds | None:
        return None if history is None else Bounds(self.kappa_low * history, self.kappa_high * history)
