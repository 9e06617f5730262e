"""The entropy control of a run: target, controller and their state between steps.

    H_t          token-mean entropy of step t, nats per token
    H0           mean of H_t over the first anchor_steps steps
    H_W          mean of H_s over all steps s < t
    H*           the target's level that is nearest to H_t, from H0 and H_W
    s_{t+1}, alpha_{t+1} = update(s_t, (H_t, H*, t)), s the controller's state

Step t trains with the alpha that was computed from the steps before t. ``observe`` is called once per global step,
after the actor's update, and moves alpha.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from verl_aer.config.schema import EntropyConfig
from verl_aer.parts.controller import ControllerState, Observation, as_floats
from verl_aer.parts.target import Anchored

Count = Annotated[int, Field(ge=0)]
"""A state file with a count below 0 is refused."""


@dataclass(frozen=True)
class ControlState:
    """State of the entropy control that a checkpoint saves; immutable.

    Args:
        alpha: coefficient of the next step, loss units per nat.
        controller: the controller's state, by name.
        initial_entropy: H0, nats per token; None until it is known.
        entropy_sum: sum of all finite entropies, for H0 and H_W, nats per token.
        entropy_count: number of finite entropies.
        last_entropy: the last finite entropy as used by the controller, nats per token; None before the first.
        step: last observed global step; 0 before the first.
        updates: number of times that the controller's rule was applied.
        skipped_updates: number of entropies that were not finite.
        saturated_steps: number of updates that a bound limited.
    """

    alpha: float
    controller: ControllerState
    initial_entropy: float | None = None
    entropy_sum: float = 0.0
    entropy_count: Count = 0
    last_entropy: float | None = None
    step: Count = 0
    updates: Count = 0
    skipped_updates: Count = 0
    saturated_steps: Count = 0

    @property
    def history(self) -> float | None:
        """H_W of the next step: the mean of the entropies so far, nats per token; None before the first."""
        return self.entropy_sum / self.entropy_count if self.entropy_count else None


class Decision(NamedTuple):
    """Result of one step's observation.

    Args:
        alpha: coefficient of this step, loss units per nat.
        next_alpha: coefficient of the next step.
        entropy: H_t as observed, nats per token.
        target: H*, nats per token; None if there is no target or H0 is not known yet.
        initial_entropy: H0, nats per token, or None.
        error: H* minus the entropy as used by the controller; None without a target and for a skipped entropy.
        skipped: the entropy was not finite and was ignored.
        saturated: a bound limited alpha.
    """

    alpha: float
    next_alpha: float
    entropy: float
    target: float | None
    initial_entropy: float | None
    error: float | None
    skipped: bool
    saturated: bool


class EntropyControl:
    """Holds a run's ControlState and updates it with one observation per global step.

    >>> from verl_aer import EntropyControl, parse_entropy_config
    >>> control = EntropyControl(parse_entropy_config({"method": "aer"}))
    >>> for step, entropy in [(1, 1.0), (2, 0.5), (3, 0.3)]:
    ...     print(f"{control.observe(entropy, step).next_alpha:.4f}")
    0.0000
    0.0000
    0.0050

    The first step sets H* = 0.4 * 1.0. Only the third step is below it, by 0.1 nats, and ki = 0.05.
    """

    def __init__(self, config: EntropyConfig, state: ControlState | None = None) -> None:
        self._target = config.target
        self._controller = config.controller
        self._regularizer = config.regularizer
        self._state = state if state is not None else _fresh_state(config)

    @property
    def state(self) -> ControlState:
        return self._state

    @property
    def alpha(self) -> float:
        """The coefficient of the next step."""
        return self._state.alpha

    def signal(self, entropy: float, step: int) -> dict[str, float]:
        """Return the regularizer's signal for global step ``step``, before its update.

        ``entropy`` is H_t of the rollouts that the step trains on, nats per token. If it is not finite, because it is
        NaN or not measured before the update, the last finite entropy replaces it.
        """
        known = entropy if math.isfinite(entropy) else self._state.last_entropy
        bounds = self._target.bounds(self._state.initial_entropy, self._state.history)
        return self._regularizer.signal(known, bounds, step)

    def bonus_slope(self, entropy: float, signal: Mapping[str, float]) -> float:
        """Return d value(H) / dH at ``entropy`` (nats per token), the factor of alpha there; 1 for a plain bonus."""
        return float(self._regularizer.slope(torch.tensor(entropy, dtype=torch.float64), signal))

    def observe(self, entropy: float, step: int) -> Decision:
        """Update alpha from the token-mean entropy (nats) of global step ``step``.

        An entropy that is not finite only increments a counter. Raises ValueError if the step is not after the last
        observed one: a second update in a step would move alpha twice for the same policy.
        """
        if step <= self._state.step:
            raise ValueError(
                f"step {step} was observed already (the last observed step is {self._state.step}); the controller "
                "moves once per global step"
            )
        before = self._state
        entropy = float(entropy)
        if not math.isfinite(entropy):
            self._state = replace(before, step=step, skipped_updates=before.skipped_updates + 1)
            bounds = self._target.bounds(before.initial_entropy, before.history)
            target = None if bounds is None else bounds.level(before.last_entropy)
            return self._decision(before, entropy, target, error=None, skipped=True, saturated=False)

        anchored = self._anchor(before, entropy)
        seen = Observation(entropy, self._target.bounds(anchored.initial_entropy, before.history), step)
        remembered, output = self._controller.update(before.controller, seen)
        if remembered.keys() != before.controller.keys():
            raise ValueError(
                f"the controller {self._controller.kind!r} changed the names of its state from "
                f"{sorted(before.controller)} to {sorted(remembered)}; return the same names from init and update"
            )
        if output.entropy is not None:
            seen = seen._replace(entropy=output.entropy)
        self._state = replace(
            anchored,
            alpha=float(output.alpha),
            controller=as_floats(remembered),
            last_entropy=seen.entropy,
            step=step,
            updates=before.updates + (seen.bounds is not None or not self._controller.uses_target),
            saturated_steps=before.saturated_steps + bool(output.saturated),
        )
        return self._decision(before, entropy, seen.target, error=seen.error, skipped=False, saturated=output.saturated)

    def _anchor(self, state: ControlState, entropy: float) -> ControlState:
        """Add the entropy to the sums, and set H0 once, after the first anchor_steps entropies."""
        total, count = state.entropy_sum + entropy, state.entropy_count + 1
        initial_entropy = state.initial_entropy
        if isinstance(self._target, Anchored) and initial_entropy is None and count >= self._target.anchor_steps:
            initial_entropy = total / count
        return replace(state, entropy_sum=total, entropy_count=count, initial_entropy=initial_entropy)

    def _decision(
        self,
        before: ControlState,
        entropy: float,
        target: float | None,
        error: float | None,
        skipped: bool,
        saturated: bool,
    ) -> Decision:
        return Decision(
            alpha=before.alpha,
            next_alpha=self._state.alpha,
            entropy=entropy,
            target=target,
            initial_entropy=self._state.initial_entropy,
            error=error,
            skipped=skipped,
            saturated=saturated,
        )


def _fresh_state(config: EntropyConfig) -> ControlState:
    known = config.target.initial_entropy if isinstance(config.target, Anchored) else None
    alpha = config.controller.initial_alpha()
    return ControlState(alpha, as_floats(config.controller.init(alpha)), initial_entropy=known)
