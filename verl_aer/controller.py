"""Controllers: how the global coefficient alpha moves when the entropy is off its target.

Pure functions of their arguments; what has to be remembered between steps lives in ``control.ControlState``.
alpha is in loss units per nat and never negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from verl_aer.methods.registry import Part, register_controller

UPDATE_RULES = ("proportional", "sign")


class Controller(Part):
    """Base of controllers; the defaults are those of a controller without memory or bounds."""

    uses_target: ClassVar[bool] = True
    """Whether the rule compares the entropy with a target; if not, the target must be ``none``."""

    def initial_alpha(self) -> float:
        """alpha of the first step."""
        raise NotImplementedError

    def next_alpha(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        """alpha of step + 1, from alpha and the token-mean entropy (nats) of ``step``."""
        raise NotImplementedError

    def damped(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        """What step + 1 trains with, from what ``next_alpha`` just returned; the next rule starts from the latter."""
        return alpha

    def allows(self, alpha: float) -> bool:
        """Whether this rule can have led to ``alpha``: what a loaded state is checked against."""
        return alpha >= 0

    def smooth(self, previous: float | None, entropy: float) -> float:
        """What the rule takes for the entropy: the measured one. ``previous``: the last smoothed value."""
        return entropy

    def saturated(self, alpha: float, entropy: float, target: float | None, step: int) -> bool:
        """Whether a bound keeps alpha from going where the rule would take it."""
        return False


@register_controller("fixed")
@dataclass
class Fixed(Controller):
    """alpha_t = coefficient: veRL's ``entropy_coeff``. The baseline, on the same code path.

    coefficient: loss units per nat, >= 0.
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


@register_controller("integral")
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
    integral goes on from alpha_{t+1}: a controller with proportional and integral part. This is our addition.

    Args:
        update_rule: one of UPDATE_RULES.
        eta: alpha per nat of error (proportional), or alpha per step (sign), >= 0.
        initial: alpha of the first step, within the bounds.
        minimum: lower bound of alpha, >= 0.
        maximum: upper bound of alpha.
        warmup_steps: first global steps that leave alpha alone, >= 0.
        dead_band: error that leaves alpha alone, nats per token, >= 0.
        ema: weight of the past, in [0, 1); 0 is off.
        damping: alpha per nat of error, on top of the integral while the error lasts, >= 0; 0 is off.

    >>> Integral(eta=0.02).next_alpha(alpha=0.01, entropy=0.1, target=0.4, step=1)  # 0.01 + 0.02 * 0.3
    0.016
    >>> Integral(eta=0.02, maximum=0.012).next_alpha(alpha=0.01, entropy=0.1, target=0.4, step=1)
    0.012
    """

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
            if getattr(self, name) < 0
        ]
        if not 0 <= self.ema < 1:
            found.append(("ema", "in [0, 1)"))
        if self.minimum > self.maximum:
            found.append(("maximum", f">= minimum ({self.minimum:g})"))
        elif not self.minimum <= self.initial <= self.maximum:
            found.append(("initial", f"between minimum ({self.minimum:g}) and maximum ({self.maximum:g})"))
        return found

    def initial_alpha(self) -> float:
        return self.initial

    def next_alpha(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        return self._clip(alpha + self._move(entropy, target, step))

    def damped(self, alpha: float, entropy: float, target: float | None, step: int) -> float:
        return self._clip(alpha + self._push(entropy, target, step))

    def allows(self, alpha: float) -> bool:
        return self.minimum <= alpha <= self.maximum

    def smooth(self, previous: float | None, entropy: float) -> float:
        return entropy if previous is None else self.ema * previous + (1 - self.ema) * entropy

    def saturated(self, alpha: float, entropy: float, target: float | None, step: int) -> bool:
        integral = alpha + self._move(entropy, target, step)
        wanted = (integral, self._clip(integral) + self._push(entropy, target, step))
        # Held at alpha = 0 the controller is idle by design, not at the end of its reach.
        return max(wanted) > self.maximum or (min(wanted) < self.minimum and self.minimum > 0)

    def _clip(self, alpha: float) -> float:
        return min(max(alpha, self.minimum), self.maximum)

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
