"""The entropy control of a run: target and controller, and what they must remember between steps.

    H_t          token-mean entropy of step t, nats per token
    H0           mean of H_t over the first anchor_steps steps ever observed
    H*           level(H0, smoothed H_t)
    a_{t+1}      next_alpha(a_t, smoothed H_t, H*, t)
    alpha_{t+1}  applied(a_{t+1}, smoothed H_t, H*, t), for most controllers a_{t+1} itself

Read before update: step t trains with the alpha decided from the steps before t; ``observe`` is called once
per global step, after the actor's update, and only then moves alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from verl_aer.config.schema import EntropyConfig


@dataclass(frozen=True)
class ControlState:
    """What a checkpoint has to hold; a value, never changed in place.

    Args:
        alpha: coefficient of the next step, loss units per nat.
        undamped_alpha: what the controller's rule goes on from, loss units per nat.
        initial_entropy: H0, nats per token; None until it is known.
        anchor_sum: entropies added up for H0, nats per token.
        anchor_count: how many they are.
        entropy_ema: last smoothed entropy, nats per token; None before the first.
        step: last global step observed, 0 for none.
        updates: times the controller's rule was applied.
        skipped_updates: entropies that were not finite.
        saturated_steps: updates that a bound held back.
    """

    alpha: float
    undamped_alpha: float
    initial_entropy: float | None = None
    anchor_sum: float = 0.0
    anchor_count: int = 0
    entropy_ema: float | None = None
    step: int = 0
    updates: int = 0
    skipped_updates: int = 0
    saturated_steps: int = 0


class Decision(NamedTuple):
    """What one step's observation led to.

    Args:
        alpha: what this step trained with, loss units per nat.
        next_alpha: what the next one trains with.
        entropy: H_t as observed, nats per token.
        target: H*, nats per token; None where there is none, or H0 is not known yet.
        initial_entropy: H0, nats per token, or None.
        error: H* minus the (smoothed) entropy; None without a target, and for a skipped entropy.
        skipped: the entropy was not finite and moved nothing.
        saturated: a bound kept alpha from going where the rule would take it.
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
    """Holds a run's ControlState and moves it, one observation per global step.

    >>> from verl_aer import EntropyControl, parse_entropy_config
    >>> control = EntropyControl(parse_entropy_config({"method": "aer"}))
    >>> for step, entropy in [(1, 1.0), (2, 0.5), (3, 0.3)]:
    ...     print(f"{control.observe(entropy, step).next_alpha:.4f}")
    0.0000
    0.0000
    0.0050

    The first step sets H* = 0.4 * 1.0; only the third is below it, by 0.1 nat, and eta = 0.05.
    """

    def __init__(self, config: EntropyConfig, state: ControlState | None = None) -> None:
        self._target = config.target
        self._controller = config.controller
        self._state = state if state is not None else _fresh_state(config)

    @property
    def state(self) -> ControlState:
        return self._state

    @property
    def alpha(self) -> float:
        """The coefficient that the coming step trains with."""
        return self._state.alpha

    def observe(self, entropy: float, step: int) -> Decision:
        """Move alpha by the token-mean entropy (nats) of global step ``step``.

        An entropy that is not finite is counted and changes nothing else. Raises ValueError for a step that
        is not after the last one observed: a second update for one step would move alpha twice for one
        policy.
        """
        if step <= self._state.step:
            raise ValueError(
                f"step {step} was observed already (the last one was {self._state.step}); the controller "
                "moves once per global step"
            )
        before = self._state
        entropy = float(entropy)
        if not math.isfinite(entropy):
            self._state = replace(before, step=step, skipped_updates=before.skipped_updates + 1)
            target = self._target.level(before.initial_entropy, before.entropy_ema)
            return self._decision(before, entropy, target, error=None, skipped=True, saturated=False)

        anchored = self._anchor(before, entropy)
        smoothed = self._controller.smooth(before.entropy_ema, entropy)
        target = self._target.level(anchored.initial_entropy, smoothed)
        observed = replace(anchored, step=step, entropy_ema=smoothed)
        if target is None and self._controller.uses_target:
            self._state = observed
            return self._decision(before, entropy, target, error=None, skipped=False, saturated=False)

        saturated = self._controller.saturated(before.undamped_alpha, smoothed, target, step)
        undamped_alpha = self._controller.next_alpha(before.undamped_alpha, smoothed, target, step)
        self._state = replace(
            observed,
            alpha=self._controller.applied(undamped_alpha, smoothed, target, step),
            undamped_alpha=undamped_alpha,
            updates=before.updates + 1,
            saturated_steps=before.saturated_steps + saturated,
        )
        error = None if target is None else target - smoothed
        return self._decision(before, entropy, target, error=error, skipped=False, saturated=saturated)

    def _anchor(self, state: ControlState, entropy: float) -> ControlState:
        """H0 := mean of the first anchor_steps entropies, then never again."""
        if not self._target.needs_anchor or state.initial_entropy is not None:
            return state
        total, count = state.anchor_sum + entropy, state.anchor_count + 1
        initial_entropy = total / count if count >= self._target.anchor_steps else None
        return replace(state, anchor_sum=total, anchor_count=count, initial_entropy=initial_entropy)

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
    known = config.target.initial_entropy if config.target.needs_anchor else None
    alpha = config.controller.initial_alpha()
    return ControlState(alpha=alpha, undamped_alpha=alpha, initial_entropy=known)
