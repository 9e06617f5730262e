"""Targets: which token-mean entropy is wanted, in nats per token: a level, a band, or none."""

from __future__ import annotations

from dataclasses import dataclass

from verl_aer.methods.registry import Part, register_target


class Target(Part):
    """Base of targets: a level H*, possibly relative to the initial entropy H0."""

    @property
    def needs_anchor(self) -> bool:
        """Whether H* is relative to H0; such a target has fields ``initial_entropy`` and ``anchor_steps``."""
        return False

    def level(self, initial_entropy: float | None, entropy: float | None) -> float | None:
        """H* in nats per token: where an entropy should go. None where there is no target, or none yet.

        Args:
            initial_entropy: H0, nats per token; None until it is known.
            entropy: H_t, nats per token; a target that is a band takes the level in it that is nearest. None before
                the first.
        """
        raise NotImplementedError


@register_target("none")
@dataclass
class NoTarget(Target):
    """No level is wanted: for a coefficient that does not move."""

    def level(self, initial_entropy: float | None, entropy: float | None) -> float | None:
        return None


@register_target("absolute")
@dataclass
class Absolute(Target):
    """H* = entropy: one number of nats, the same for every model and temperature.

    entropy: nats per token, > 0. 0.2 is the level of Skywork-OR1's released scripts and of TRL's default.
    """

    entropy: float = 0.2

    def problems(self) -> list[tuple[str, str]]:
        return [("entropy", "> 0")] if self.entropy <= 0 else []

    def level(self, initial_entropy: float | None, entropy: float | None) -> float | None:
        return self.entropy


@register_target("band")
@dataclass
class Band(Target):
    """H* = clip(H_t, low, high): any entropy in the band is as good as another (AEnt, arXiv 2509.03493).

    low, high: nats per token, 0 <= low <= high. 0.1 and 0.5 are the defaults of AEnt's code; its GSM8K example has
    0.05 and 0.23, and says that the results are sensitive to these two alone.

    >>> [Band(low=0.1, high=0.5).level(None, entropy) for entropy in (0.05, 0.3, 0.9)]
    [0.1, 0.3, 0.5]
    """

    low: float = 0.1
    high: float = 0.5

    def problems(self) -> list[tuple[str, str]]:
        found = [("low", ">= 0")] if self.low < 0 else []
        return [*found, ("high", f">= low ({self.low:g})")] if self.high < self.low else found

    def level(self, initial_entropy: float | None, entropy: float | None) -> float | None:
        return None if entropy is None else min(max(entropy, self.low), self.high)


@register_target("anchored")
@dataclass
class Anchored(Target):
    """H* = tau * H0: a fixed share of the initial policy's entropy.

    H0 is the token-mean entropy of the first rollouts ever trained on, measured as every later step's is,
    kept with the checkpoint and never measured again. Our reading of AER (arXiv 2510.10959): a target below
    the initial level; tau about 0.4 is the only value reported, second-hand.

    Args:
        tau: share of H0, in (0, 1].
        initial_entropy: H0 in nats per token if already known; None measures it.
        anchor_steps: average H0 over this many first steps; alpha does not move before they are over.

    >>> Anchored(tau=0.4).level(initial_entropy=0.5, entropy=0.3)
    0.2
    """

    tau: float = 0.4
    initial_entropy: float | None = None
    anchor_steps: int = 1

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if not 0 < self.tau <= 1:
            found.append(("tau", "in (0, 1]"))
        if self.initial_entropy is not None and self.initial_entropy <= 0:
            found.append(("initial_entropy", "null (measure it) or > 0"))
        if self.anchor_steps < 1:
            found.append(("anchor_steps", ">= 1"))
        return found

    @property
    def needs_anchor(self) -> bool:
        return True

    def level(self, initial_entropy: float | None, entropy: float | None) -> float | None:
        return None if initial_entropy is None else self.tau * initial_entropy
