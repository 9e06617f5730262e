"""Controllers: move the global coefficient alpha when the entropy is off its target.

A controller is a pure rule with a state. The control loop keeps the state and saves it. ``init`` creates the state,
``update`` advances it by one step, and ``restore`` adapts a saved state to other settings. alpha is in loss units per
nat; a negative alpha is a penalty on entropy.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from verl_aer._settings import at_least
from verl_aer.parts.base import Part, register_part
from verl_aer.parts.target import Bounds

ControllerState = Mapping[str, float | None]
"""A controller's state: numbers by name, with the same names in every step; None if not known yet."""


class Observation(NamedTuple):
    """Input of a rule: the measurements of one global step.

    >>> Observation(entropy=0.75, bounds=Bounds(0.25, 0.5), step=1).error
    -0.25
    """

    entropy: float
    """Token-mean entropy H_t, finite, nats per token."""
    bounds: Bounds | None
    """The target range, nats per token; None if there is no target or H0 is not known yet."""
    step: int
    """The global step, counted from 1."""

    @property
    def target(self) -> float | None:
        """H*, the entropy within the target range that is nearest to H_t, nats per token."""
        return None if self.bounds is None else self.bounds.level(self.entropy)

    @property
    def error(self) -> float | None:
        """H* - H_t, nats per token; positive if the entropy is too low."""
        return None if self.target is None else self.target - self.entropy


class Output(NamedTuple):
    """Output of a rule: its decision after one step."""

    alpha: float
    """Coefficient of the next step, loss units per nat."""
    saturated: bool = False
    """Whether a bound limited alpha."""
    entropy: float | None = None
    """The entropy that the rule used as H_t, nats per token; None for the measured one."""


def as_floats(state: ControllerState) -> ControllerState:
    """Convert integers and NumPy numbers to floats: the state file accepts only floats."""
    return {name: None if value is None else float(value) for name, value in state.items()}


def _known(state: ControllerState, name: str) -> float:
    """Return a number that ``init`` has set."""
    number = state[name]
    assert number is not None
    return number


class Controller(Part, role="controller"):
    """Base of controllers; by default a controller has no state and no bounds."""

    uses_target: ClassVar[bool] = True
    """Whether the rule compares the entropy with a target; if not, the target must be ``none``."""

    @abstractmethod
    def initial_alpha(self) -> float:
        """Return alpha of the first step."""

    def init(self, alpha: float) -> ControllerState:
        """Create the state for a next step with ``alpha``: the initial alpha, or the last one of another controller."""
        return {}

    @abstractmethod
    def update(self, state: ControllerState, seen: Observation) -> tuple[ControllerState, Output]:
        """Compute alpha of the next step without changing ``state``; keep alpha if ``seen.error`` is None."""

    def restore(self, state: ControllerState, alpha: float) -> tuple[ControllerState, float]:
        """Return the valid state and alpha that are nearest to those of a run with other settings.

        A state and alpha from ``update`` with the same settings must be returned unchanged: loading a state file
        checks this.
        """
        return state, alpha


@register_part("fixed")
class Fixed(Controller):
    """alpha_t = coefficient, as veRL's ``entropy_coeff``: the baseline on the same code path."""

    uses_target: ClassVar[bool] = False

    coefficient: float = Field(default=0.01, ge=0)
    """The constant alpha, loss units per nat."""

    def initial_alpha(self) -> float:
        return self.coefficient

    def update(self, state: ControllerState, seen: Observation) -> tuple[ControllerState, Output]:
        return state, Output(self.coefficient)

    def restore(self, state: ControllerState, alpha: float) -> tuple[ControllerState, float]:
        return state, self.coefficient


class BoundedController(Controller):
    """Base of controllers with a lower and an upper bound of alpha."""

    alpha_min: float = 0.0
    """Lower bound of alpha; a negative value allows a penalty on entropy."""
    alpha_max: float = 0.2
    """Upper bound of alpha; >= alpha_min."""
    alpha_init: float = 0.0
    """alpha of the first step, between alpha_min and alpha_max."""

    @field_validator("alpha_max")
    @classmethod
    def _is_above_alpha_min(cls, alpha_max: float, earlier: ValidationInfo) -> float:
        return at_least(alpha_max, "alpha_min", earlier)

    @field_validator("alpha_init")
    @classmethod
    def _is_within_the_bounds(cls, alpha_init: float, earlier: ValidationInfo) -> float:
        low, high = earlier.data.get("alpha_min"), earlier.data.get("alpha_max")
        if low is not None and high is not None and not low <= alpha_init <= high:
            raise ValueError(f"between alpha_min ({low:g}) and alpha_max ({high:g})")
        return alpha_init

    def initial_alpha(self) -> float:
        return self.alpha_init

    def clip(self, alpha: float) -> float:
        """Return the nearest alpha within the bounds."""
        return min(max(alpha, self.alpha_min), self.alpha_max)

    def is_held_back(self, *wanted: float) -> bool:
        """Tell whether a bound limits one of the values that the rule computed."""
        # A lower bound of 0 does not count: there the controller is idle by design, not saturated.
        return max(wanted) > self.alpha_max or (min(wanted) < self.alpha_min and self.alpha_min != 0)


@register_part("pi")
class PI(BoundedController):
    """I_{t+1} = clip(I_t + ki * (H* - H_t)), alpha_{t+1} = clip(I_{t+1} + kp * (H* - H_t)), clip to the alpha bounds.

    The integral I starts at alpha_init and moves once per global step. The error H* - H_t counts as 0 while
    t <= warmup_steps, and if its absolute value is at most dead_band. With ema > 0, H_t is replaced by its running
    mean ema * previous + (1 - ema) * H_t.

    With kp = 0 this is our interpretation of AER (arXiv 2510.10959): "dynamic global coefficient adjustment" towards
    a target. The clip of I is the anti-windup: an integral at its bound leaves it at the first error of opposite sign.
    The policy's entropy integrates alpha over time, so integral control on its own oscillates around the target. kp
    damps the oscillation; it is our addition to AER.

    With ki = 0.01, kp = 1 and the bounds -1 and 1 this is EntroPIC's controller (arXiv 2511.15248), whose coefficient
    is -alpha. EntroPIC updates it once per micro-batch and rank, and does not bound the integral. With the target
    ``band`` this is AEnt's controller (arXiv 2509.03493): alpha rests while H_t is in the band, and moves by the
    distance outside it.

    >>> controller, seen = PI(ki=0.02, kp=0.1), Observation(entropy=0.1, bounds=Bounds(0.4, 0.4), step=1)
    >>> state, output = controller.update(controller.init(0.01), seen)
    >>> state["integral"], round(output.alpha, 6)  # 0.01 + 0.02 * 0.3, and 0.1 * 0.3 on top
    (0.016, 0.046)
    """

    ki: float = Field(default=0.05, ge=0)
    """Integral gain: change of alpha per nat of error and step."""
    kp: float = Field(default=0.0, ge=0)
    """Proportional gain: alpha per nat of error, added to the integral; damps oscillation; 0 disables it."""
    warmup_steps: int = Field(default=0, ge=0)
    """Number of first steps during which alpha stays at alpha_init."""
    dead_band: float = Field(default=0.0, ge=0)
    """alpha does not move while |error| is at most this, nats per token."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Weight of earlier steps in a running mean of the measured entropy; 0 disables it."""

    def init(self, alpha: float) -> ControllerState:
        return {"integral": alpha, "entropy_ema": None}

    def update(self, state: ControllerState, seen: Observation) -> tuple[ControllerState, Output]:
        seen = seen._replace(entropy=self._smooth(state["entropy_ema"], seen.entropy))
        error = self._counted_error(seen)
        wanted_integral = _known(state, "integral") + self.ki * error
        integral = self.clip(wanted_integral)
        wanted_alpha = integral + self.kp * error
        output = Output(self.clip(wanted_alpha), self.is_held_back(wanted_integral, wanted_alpha), seen.entropy)
        return {"integral": integral, "entropy_ema": seen.entropy}, output

    def restore(self, state: ControllerState, alpha: float) -> tuple[ControllerState, float]:
        return {**state, "integral": self.clip(_known(state, "integral"))}, self.clip(alpha)

    def _smooth(self, previous: float | None, entropy: float) -> float:
        return entropy if previous is None else self.ema * previous + (1 - self.ema) * entropy

    def _counted_error(self, seen: Observation) -> float:
        if seen.error is None or seen.step <= self.warmup_steps or abs(seen.error) <= self.dead_band:
            return 0.0
        return seen.error


@register_part("sign")
class Sign(BoundedController):
    """c_{t+1} = clip(c_t + step_size if H_t < H* else c_t - step_size), alpha_{t+1} = c_{t+1} * 1[H_t < H*].

    Skywork-OR1 (arXiv 2505.22312): the coefficient goes up or down by a constant, and it is not applied above the
    target. The defaults are those of its released scripts. TRL's rule differs only at H_t = H*, where the coefficient
    goes up and is applied.

    >>> controller, state = Sign(step_size=0.25, alpha_max=1.0), {"coefficient": 0.5}
    >>> for entropy in (0.1, 0.2):
    ...     print(controller.update(state, Observation(entropy, Bounds(0.2, 0.2), step=1)))
    ({'coefficient': 0.75}, Output(alpha=0.75, saturated=False, entropy=None))
    ({'coefficient': 0.25}, Output(alpha=0.0, saturated=False, entropy=None))
    """

    step_size: float = Field(default=1e-4, ge=0)
    """Change of c per step, loss units per nat."""
    alpha_min: float = Field(default=0.0, ge=0)
    """Lower bound of c."""
    alpha_max: float = 0.005
    """Upper bound of c; >= alpha_min."""
    alpha_init: float = 0.0
    """c of the first step, which is always applied; between alpha_min and alpha_max."""
    gate: bool = True
    """Whether alpha is 0 while H_t >= H*; false always applies c."""

    def init(self, alpha: float) -> ControllerState:
        return {"coefficient": alpha}

    def update(self, state: ControllerState, seen: Observation) -> tuple[ControllerState, Output]:
        if seen.error is None:
            return state, Output(_known(state, "coefficient"))
        is_low = seen.error > 0
        wanted = _known(state, "coefficient") + (self.step_size if is_low else -self.step_size)
        coefficient = self.clip(wanted)
        alpha = coefficient if is_low or not self.gate else 0.0
        return {"coefficient": coefficient}, Output(alpha, self.is_held_back(wanted))

    def restore(self, state: ControllerState, alpha: float) -> tuple[ControllerState, float]:
        is_withheld = self.gate and alpha == 0
        coefficient = self.clip(_known(state, "coefficient"))
        return {"coefficient": coefficient}, alpha if is_withheld else self.clip(alpha)


@register_part("schedule")
class Schedule(Controller):
    """alpha_t = alpha_init * s(x) with x = (t - 1) / total_steps, at most 1, whatever the entropy does:

        cos_signed   s(x) = cos(pi x)       as printed by CEEH (arXiv 2602.22642): negative in the second half
        cos_half     s(x) = cos(pi x / 2)   possibly the intended form: from 1 to 0
        linear       s(x) = 1 - x

    A negative coefficient is a penalty on entropy; cos_signed ends at -alpha_init.

    >>> steps = [Observation(0.3, None, step) for step in (1, 2, 3, 4, 5)]
    >>> [round(Schedule(alpha_init=1.0, total_steps=4).update({}, seen)[1].alpha, 3) for seen in steps]
    [0.707, 0.0, -0.707, -1.0, -1.0]
    """

    uses_target: ClassVar[bool] = False

    alpha_init: float = Field(default=1e-3, ge=0)
    """alpha of the first step, loss units per nat."""
    shape: Literal["cos_signed", "cos_half", "linear"] = "cos_signed"
    """Which of the formulas above."""
    total_steps: int | None = Field(default=None, ge=1)
    """Length of the schedule in global steps; null uses the length of the run."""

    def initial_alpha(self) -> float:
        return self.alpha_init

    def update(self, state: ControllerState, seen: Observation) -> tuple[ControllerState, Output]:
        if self.total_steps is None:
            raise ValueError("entropy.controller.total_steps is not known; set it to the run's number of steps")
        x = min(seen.step / self.total_steps, 1.0)
        share = {"cos_signed": math.cos(math.pi * x), "cos_half": math.cos(math.pi * x / 2), "linear": 1.0 - x}
        return state, Output(self.alpha_init * share[self.shape])

    def restore(self, state: ControllerState, alpha: float) -> tuple[ControllerState, float]:
        """Return the saved alpha for the first step of the resumed run; later steps follow the schedule."""
        return state, min(max(alpha, -self.alpha_init), self.alpha_init)
