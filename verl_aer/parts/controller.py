"""Controllers: how the global coefficient alpha moves when the entropy is off its target.

Pure functions of their arguments; what has to be remembered between steps lives in ``control.loop.ControlState``.
alpha is in loss units per nat; below 0 it is a penalty on entropy, which only ``schedule`` and
``proportional_integral`` can ask for.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from verl_aer.parts.base import Part, register_part

UPDATE_RULES = ("proportional", "sign")
SCHEDULES = ("cos_signed", "cos_half", "linear")


class Controller(Part, role="controller"):
    """Base of controllers; the defaults are those of a controller without memory or bounds."""

    uses_target: ClassVar[bool] = True
    """Whether the rule compares the entropy with a target; if not, the target must be ``none``."""

    @abstractmethod
    def initial_alpha(self) -> float:
        """alpha of the first step."""

    @abstractmethod
    def next_alpha(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        """alpha of step + 1, from alpha and the token-mean entropy (nats) of ``step``."""

    def applied(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        """What step + 1 trains with, from what ``next_alpha`` just returned; the next rule starts from the latter."""
        return alpha

    def allows(self, alpha: float) -> bool:
        """Whether this rule can have led to ``alpha``: what a loaded state is checked against."""
        return alpha >= 0

    def nearest(self, alpha: float) -> float:
        """What a run whose ``alpha`` was decided under other settings resumes from: the nearest that is allowed."""
        return alpha if self.allows(alpha) else self.initial_alpha()

    def smooth(self, previous: float | None, entropy: float) -> float:
        """What the rule takes for the entropy: the measured one. ``previous``: the last smoothed value."""
        return entropy

    def saturated(self, alpha: float, entropy: float, target: float | None, step: int) -> bool:
        """Whether a bound keeps alpha from going where the rule would take it."""
        return False


@register_part("fixed")
@dataclass
class Fixed(Controller):
    """alpha_t = coefficient: veRL's ``entropy_coeff``. The baseline, on the same code path.

    Args:
        coefficient: the constant alpha, loss units per nat, >= 0.
    """

    uses_target: ClassVar[bool] = False

    coefficient: float = 0.01

    def problems(self) -> list[tuple[str, str]]:
        return [("coefficient", ">= 0")] if self.coefficient < 0 else []

    def initial_alpha(self) -> float:
        return self.coefficient

    def next_alpha(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        return self.coefficient

    def allows(self, alpha: float) -> bool:
        return alpha == self.coefficient


@register_part("integral")
@dataclass
class Integral(Controller):
    """alpha_{t+1} = clip(alpha_t + eta * (H* - H_t), minimum, maximum), once per global step.

    ``sign`` moves by a constant: alpha_{t+1} = clip(alpha_t + eta * sign(H* - H_t), minimum, maximum).
    alpha does not move while t <= warmup_steps, nor where |H* - H_t| <= dead_band. With ema > 0, H_t is
    replaced by its running mean ema * previous + (1 - ema) * H_t.

    Our reading of AER (arXiv 2510.10959): "dynamic global coefficient adjustment" towards a target. The clip
    is the anti-windup: alpha is the integral, so an integral held at its bound leaves it on the first error
    of other sign.

    Entropy itself adds up what alpha does, so an integral alone is a spring: it swings around the target. With
    damping > 0 the step trains with clip(alpha_{t+1} + damping * (H* - H_t), minimum, maximum) instead, and the
    integral continues from alpha_{t+1}: a controller with proportional and integral part. This is our addition.

    Args:
        update_rule: proportional (alpha + eta * error) or sign (alpha +- eta); error = target - entropy.
        eta: step size: alpha per nat of error (proportional), or alpha per step (sign), >= 0.
        initial: alpha of the first step, between minimum and maximum.
        minimum: lower bound of alpha, >= 0; ``proportional_integral`` may have it below 0.
        maximum: upper bound of alpha, >= minimum.
        warmup_steps: alpha stays at its initial value through this many first steps, >= 0.
        dead_band: alpha does not move while the error is at most this, nats per token, >= 0.
        ema: weight of the past in a running mean of the measured entropy, in [0, 1); 0 is off.
        damping: alpha per nat of error, on top of the integral while the error lasts, >= 0; damps its swing; 0 is off.

    >>> Integral(eta=0.02).next_alpha(alpha=0.01, entropy=0.1, target=0.4, step=1)  # 0.01 + 0.02 * 0.3
    0.016
    >>> Integral(eta=0.02, maximum=0.012).next_alpha(alpha=0.01, entropy=0.1, target=0.4, step=1)
    0.012
    """

    two_sided: ClassVar[bool] = False
    """Whether alpha may be below 0."""

    update_rule: str = "proportional"
    eta: float = 0.05
    initial: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.2
    warmup_steps: int = 0
    dead_band: float = 0.0
    ema: float = 0.0
    damping: float = 0.0

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if self.update_rule not in UPDATE_RULES:
            found.append(("update_rule", f"one of {', '.join(UPDATE_RULES)}"))
        found += [
            (name, ">= 0")
            for name in ("eta", "minimum", "warmup_steps", "dead_band", "damping")
            if getattr(self, name) < 0 and not (name == "minimum" and self.two_sided)
        ]
        if not 0 <= self.ema < 1:
            found.append(("ema", "in [0, 1)"))
        return found + _bounds_problems(self.initial, self.minimum, self.maximum)

    def initial_alpha(self) -> float:
        return self.initial

    def next_alpha(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        return self._clip(alpha + self._move(entropy, target, step))

    def applied(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        return self._clip(alpha + self._push(entropy, target, step))

    def allows(self, alpha: float) -> bool:
        return self.minimum <= alpha <= self.maximum

    def nearest(self, alpha: float) -> float:
        return self._clip(alpha)

    def smooth(self, previous: float | None, entropy: float) -> float:
        return entropy if previous is None else self.ema * previous + (1 - self.ema) * entropy

    def saturated(self, alpha: float, entropy: float, target: float | None, step: int) -> bool:
        integral = alpha + self._move(entropy, target, step)
        wanted = (integral, self._clip(integral) + self._push(entropy, target, step))
        return _held_back(min(wanted), max(wanted), self.minimum, self.maximum)

    def _clip(self, alpha: float) -> float:
        return _clip(alpha, self.minimum, self.maximum)

    def _move(self, entropy: float, target: float, step: int) -> float:
        """eta * (H* - H_t), or eta * sign(H* - H_t)."""
        error = self._counted_error(entropy, target, step)
        if self.update_rule == "sign":
            return self.eta * ((error > 0) - (error < 0))
        return self.eta * error

    def _push(self, entropy: float, target: float, step: int) -> float:
        """damping * (H* - H_t)."""
        return self.damping * self._counted_error(entropy, target, step)

    def _counted_error(self, entropy: float, target: float, step: int) -> float:
        error = target - entropy
        return 0.0 if step <= self.warmup_steps or abs(error) <= self.dead_band else error


@register_part("proportional_integral")
@dataclass
class ProportionalIntegral(Integral):
    """alpha_{t+1} = clip(I_{t+1} + damping * (H* - H_t)), I_{t+1} = clip(I_t + eta * (H* - H_t)), on both sides of 0.

    ``integral`` with both of its parts. As EntroPIC's controller (arXiv 2511.15248), whose coefficient is -alpha, eta
    is its K_i and damping its K_p; the defaults are its code's. There it moves once a micro-batch and rank, and its
    integral has no bound.

    >>> ProportionalIntegral().applied(alpha=0.01, entropy=0.05, target=0.1, step=1)
    0.060000000000000005
    """

    eta: float = 0.01
    minimum: float = -1.0
    maximum: float = 1.0
    damping: float = 1.0
    two_sided: ClassVar[bool] = True


@register_part("dead_band")
@dataclass
class DeadBand(Integral):
    """alpha_{t+1} = clip(alpha_t - eta * [min(0, H_t - low) + max(0, H_t - high)], minimum, maximum), target ``band``.

    AEnt's controller (arXiv 2509.03493): alpha rests while H_t is in the band [low, high], and moves by the distance
    outside it. As H* is the level of the band that is nearest to H_t, this is ``integral`` with AEnt's bounds: the
    defaults are those of its code's dataclass.

    >>> from verl_aer.parts.target import Band
    >>> band, controller = Band(low=0.25, high=0.5), DeadBand(eta=0.5, maximum=1.0)
    >>> levels = [(entropy, band.level(None, None, entropy)) for entropy in (0.125, 0.375, 0.75)]
    >>> [controller.next_alpha(0.5, entropy, level, step=1) for entropy, level in levels]
    [0.5625, 0.5, 0.375]
    """

    eta: float = 1e-3
    initial: float = 1e-3
    minimum: float = 1e-5
    maximum: float = 1e-2


@register_part("sign_gated")
@dataclass
class SignGated(Controller):
    """c_{t+1} = clip(c_t + delta if H_t < H* else c_t - delta, minimum, maximum); alpha_{t+1} = c_{t+1} * 1[H_t < H*].

    Skywork-OR1 (arXiv 2505.22312): the coefficient goes up and down by a constant, and above the target it is not
    applied at all. The defaults are those of its released scripts. TRL's rule is the same but where H_t = H* exactly:
    there it goes up and is applied.

    Args:
        delta: change of c per step, loss units per nat, >= 0.
        initial: c of the first step, which trains with it, between minimum and maximum.
        minimum: lower bound of c, >= 0.
        maximum: upper bound of c, >= minimum.
        gate: whether c is withheld while H_t >= H*; false trains with c always.

    >>> controller = SignGated(delta=0.25, maximum=1.0)
    >>> [controller.next_alpha(0.5, entropy, target=0.2, step=1) for entropy in (0.1, 0.2, 0.3)]
    [0.75, 0.25, 0.25]
    >>> [controller.applied(0.5, entropy, target=0.2, step=1) for entropy in (0.1, 0.2, 0.3)]
    [0.5, 0.0, 0.0]
    """

    delta: float = 1e-4
    initial: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.005
    gate: bool = True

    def problems(self) -> list[tuple[str, str]]:
        found = [(name, ">= 0") for name in ("delta", "minimum") if getattr(self, name) < 0]
        return found + _bounds_problems(self.initial, self.minimum, self.maximum)

    def initial_alpha(self) -> float:
        return self.initial

    def next_alpha(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        return _clip(self._wanted(alpha, entropy, target), self.minimum, self.maximum)

    def applied(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        return alpha if entropy < target or not self.gate else 0.0

    def allows(self, alpha: float) -> bool:
        return self.minimum <= alpha <= self.maximum or (self.gate and alpha == 0)

    def nearest(self, alpha: float) -> float:
        return alpha if self.allows(alpha) else _clip(alpha, self.minimum, self.maximum)

    def saturated(self, alpha: float, entropy: float, target: float | None, step: int) -> bool:
        wanted = self._wanted(alpha, entropy, target)
        return _held_back(wanted, wanted, self.minimum, self.maximum)

    def _wanted(self, alpha: float, entropy: float, target: float) -> float:
        return alpha + self.delta if entropy < target else alpha - self.delta


@register_part("schedule")
@dataclass
class Schedule(Controller):
    """alpha_t = initial * s(x) with x = (t - 1) / total_steps, at most 1, whatever the entropy does:

        cos_signed   s(x) = cos(pi x)       as CEEH (arXiv 2602.22642) prints it: below 0 in the second half
        cos_half     s(x) = cos(pi x / 2)   what may have been meant: from 1 to 0
        linear       s(x) = 1 - x

    Below 0 the coefficient is a *penalty* on entropy, down to -initial at the end.

    Args:
        initial: alpha of the first step, loss units per nat, >= 0.
        shape: which of the formulas above: cos_signed, cos_half or linear.
        total_steps: global steps from the first to the last value, >= 1; null takes those of the run.

    >>> [round(Schedule(1.0, total_steps=4).next_alpha(0.0, 0.3, None, step), 3) for step in (1, 2, 3, 4, 5)]
    [0.707, 0.0, -0.707, -1.0, -1.0]
    """

    uses_target: ClassVar[bool] = False

    initial: float = 1e-3
    shape: str = "cos_signed"
    total_steps: int | None = None

    def problems(self) -> list[tuple[str, str]]:
        found = [("initial", ">= 0")] if self.initial < 0 else []
        if self.shape not in SCHEDULES:
            found.append(("shape", f"one of {', '.join(SCHEDULES)}"))
        if self.total_steps is not None and self.total_steps < 1:
            found.append(("total_steps", "null (the run's own) or >= 1"))
        return found

    def initial_alpha(self) -> float:
        return self.initial

    def next_alpha(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        if self.total_steps is None:
            raise ValueError("entropy.controller.total_steps is not known: set it to the run's number of steps")
        x = min(step / self.total_steps, 1.0)
        share = {"cos_signed": math.cos(math.pi * x), "cos_half": math.cos(math.pi * x / 2), "linear": 1.0 - x}
        return self.initial * share[self.shape]

    def allows(self, alpha: float) -> bool:
        return abs(alpha) <= self.initial

    def nearest(self, alpha: float) -> float:
        """The first step of the resumed run trains with it; the next value is the schedule's."""
        return _clip(alpha, -self.initial, self.initial)


def _clip(alpha: float, minimum: float, maximum: float) -> float:
    return min(max(alpha, minimum), maximum)


def _held_back(lowest: float, highest: float, minimum: float, maximum: float) -> bool:
    """Whether a bound keeps alpha from the lowest or the highest that the rule asks for."""
    # Held at alpha = 0 a controller is idle by design, not at the end of its reach.
    return highest > maximum or (lowest < minimum and minimum != 0)


def _bounds_problems(initial: float, minimum: float, maximum: float) -> list[tuple[str, str]]:
    if minimum > maximum:
        return [("maximum", f">= minimum ({minimum:g})")]
    if not minimum <= initial <= maximum:
        return [("initial", f"between minimum ({minimum:g}) and maximum ({maximum:g})")]
    return []
