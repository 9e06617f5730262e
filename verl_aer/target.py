"""Targets: which token-mean entropy is wanted, in nats per token, or none."""

from __future__ import annotations

from dataclasses import dataclass

from verl_aer.methods.registry import Part, register_target


class Target(Part):
    """Base of targets: a level H*, possibly relative to the initial entropy H0."""

    @property
    def needs_anchor(self) -> bool:
        """Whether H* is relative to H0; such a target has fields ``initial_entropy`` and ``anchor_steps``."""
        return False

    def level(self, initial_entropy: float | None) -> float | None:
        """H* in nats per token; None where there is none, or none yet."""
        raise NotImplementedError


@register_target("none")
@dataclass
class NoTarget(Target):
    """No level is wanted: for a coefficient that does not move."""

    def level(self, initial_entropy: float | None) -> float | None:
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

    def level(self, initial_entropy: float | None) -> float | None:
        return self.entropy


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

    >>> Anchored(tau=0.4).level(initial_entropy=0.5)
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

    def level(self, initial_entropy: float | None) -> float | None:
        return None if initial_entropy is None else self.tau * initial_entropy
