"""Targets: define the desired token-mean entropy in nats per token: a level, a band, or none."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from verl_aer._settings import at_least
from verl_aer.parts.base import Part, register_part


class Bounds(NamedTuple):
    """Target range of the entropy, nats per token; both ends are equal for a single level.

    >>> [Bounds(low=0.1, high=0.5).level(entropy) for entropy in (0.05, 0.3, 0.9)]
    [0.1, 0.3, 0.5]
    """

    low: float
    high: float

    def level(self, entropy: float | None) -> float | None:
        """Return the level H* = clip(H_t, low, high), nats per token.

        ``entropy`` is H_t in nats per token. It is None before the first measurement; a band then has no level.
        """
        if self.low == self.high:
            return self.low
        return None if entropy is None else min(max(entropy, self.low), self.high)


class Target(Part, role="target"):
    """Base of targets: a level H* or a band, absolute or relative to earlier entropies."""

    @abstractmethod
    def bounds(self, initial_entropy: float | None, history: float | None) -> Bounds | None:
        """Return the target range; None if there is no target, or none yet.

        Args:
            initial_entropy: H0, nats per token; None until it is known.
            history: mean entropy of all earlier steps, nats per token; None in the first step.
        """


@register_part("none")
class NoTarget(Target):
    """No target, for controllers that do not use the entropy."""

    def bounds(self, initial_entropy: float | None, history: float | None) -> None:
        return None


@register_part("absolute")
class Absolute(Target):
    """H* = entropy: a fixed level, the same for every model and temperature."""

    entropy: float = Field(default=0.2, gt=0)
    """Target token-mean entropy, nats per token. 0.2 is the value of Skywork-OR1's released scripts and the default
    of TRL."""

    def bounds(self, initial_entropy: float | None, history: float | None) -> Bounds:
        return Bounds(self.entropy, self.entropy)


@register_part("band")
class Band(Target):
    """H* = clip(H_t, low, high): every entropy in the band is on target (AEnt, arXiv 2509.03493).

    0.1 and 0.5 are the defaults of AEnt's code. Its GSM8K example uses 0.05 and 0.23; it says that the results are
    sensitive only to these two settings.
    """

    low: float = Field(default=0.1, ge=0)
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

    H0 is the token-mean entropy of the first rollouts that are trained on. It is measured like the entropy of every
    later step, saved with the checkpoint and never measured again. This is our interpretation of AER (arXiv
    2510.10959): a target below the initial level. The only reported value is tau of about 0.4, and it is second-hand.

    >>> Anchored(tau=0.4).bounds(initial_entropy=0.5, history=None)
    Bounds(low=0.2, high=0.2)
    """

    tau: float = Field(default=0.4, gt=0, le=1)
    """Target entropy as a share of the initial entropy H0."""
    initial_entropy: float | None = Field(default=None, gt=0)
    """H0, nats per token, if already known; null measures it. On resume, a number replaces the saved H0 and null
    keeps it."""
    anchor_steps: int = Field(default=1, ge=1)
    """Number of first steps over which H0 is averaged; alpha does not move during these steps."""

    def bounds(self, initial_entropy: float | None, history: float | None) -> Bounds | None:
        if initial_entropy is None:
            return None
        level = self.tau * initial_entropy
        return Bounds(level, level)


@register_part("history")
class History(Target):
    """H* = clip(H_t, kappa_low * H_W, kappa_high * H_W), H_W the mean entropy of all earlier steps (EPO).

    The mean is over the whole run and not over a window, so the band moves ever more slowly. The first step has no
    band. Source: arXiv 2509.22576. Its tables use 0 and 2: the entropy then has only an upper bound.

    >>> History(kappa_low=0.5, kappa_high=2.0).bounds(initial_entropy=None, history=0.25)
    Bounds(low=0.125, high=0.5)
    """

    kappa_low: float = Field(default=0.0, ge=0)
    """Lower end of the band, as a multiple of H_W."""
    kappa_high: float = 2.0
    """Upper end of the band, as a multiple of H_W; >= kappa_low."""

    @field_validator("kappa_high")
    @classmethod
    def _is_above_low(cls, kappa_high: float, earlier: ValidationInfo) -> float:
        return at_least(kappa_high, "kappa_low", earlier)

    def bounds(self, initial_entropy: float | None, history: float | None) -> Bounds | None:
        return None if history is None else Bounds(self.kappa_low * history, self.kappa_high * history)
