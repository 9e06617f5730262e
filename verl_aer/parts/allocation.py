"""Allocation: which trajectory gets how much exploration.

    lambda_i = alpha * w(q_i)

Every rollout of prompt q gets the same weight w(q) >= 0, computed on the driver from the group's accuracy and
constant within the step; no gradient flows through it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from verl_aer.errors import VerlAerError
from verl_aer.parts.base import Part, register_part
from verl_aer.rollouts.groups import Groups


class AllocationError(VerlAerError, ValueError):
    """An allocation returned weights that cannot be used; the message names the prompt and the value."""


class Allocation(Part, role="allocation"):
    """Base of allocations: a rule from groups to one weight per prompt."""

    uses_accuracy: ClassVar[bool] = True
    """Whether the weights depend on group accuracy; without it a group of one rollout is enough."""

    uses_questions: ClassVar[bool] = False
    """Whether ``groups`` has to hold what is remembered of each question."""

    @abstractmethod
    def weights(self, groups: Groups) -> np.ndarray:
        """Weight of each prompt, ``(P,)`` float64, finite and >= 0."""


@register_part("uniform")
class Uniform(Allocation):
    """w(q) = 1: every trajectory gets the global coefficient."""

    uses_accuracy: ClassVar[bool] = False

    def weights(self, groups: Groups) -> np.ndarray:
        """``(P,)`` ones."""
        return np.ones(len(groups.accuracy))


@register_part("difficulty")
class Difficulty(Allocation):
    """Harder prompts get more, easy ones none: with g the group's accuracy,

        linear       w(q) = max(0, rho - g) / rho
        step         w(q) = 1 if g < rho else 0

    then, in this order:

        w(q) = 0                      where g = 0, unless include_all_wrong
        w(q) = 0                      where H(q) > entropy_ceiling * H0
        w(q) + s * (1 - w(q))         for all other prompts, with the s >= 0 that lifts mean(w) to mean_floor

    H(q) is the mean entropy of the prompt's rollouts.

    A policy that gets good leaves few prompts below rho. Without the floor alpha then rises by 1 / mean(w) to move the
    mean entropy through these few alone, and they get it undiluted: their entropy runs away while the mean sits on its
    target. The floor lets alpha act through all prompts instead, the harder ones still more; the ceiling ends the bonus
    of a prompt that is above the initial level. Both are our addition, chosen by ``python -m benchmarks.actuator``.

    Our reading of AER (arXiv 2510.10959), whose description gives the threshold rho, "harder gets more" and "easy gets
    less or zero", and not the map itself. max(0, rho - g) without the division is the same with alpha, ki, kp and the
    bounds divided by rho.

    >>> from verl_aer.rollouts.groups import Groups
    >>> accuracy = np.array([0.0, 0.125, 0.5, 1.0])
    >>> groups = Groups(accuracy, size=np.full(4, 8), prompt_of_row=np.arange(4))
    >>> Difficulty(rho=0.5).weights(groups)
    array([1.  , 0.75, 0.  , 0.  ])
    >>> Difficulty(rho=0.5, mean_floor=0.55).weights(groups)  # s = (0.55 - 0.4375) / (1 - 0.4375) = 0.2
    array([1. , 0.8, 0.2, 0.2])
    >>> Difficulty(shape="step").weights(groups)
    array([1., 1., 0., 0.])
    """

    shape: Literal["linear", "step"] = "linear"
    """Which of the formulas above."""
    rho: float = Field(0.5, gt=0)
    """Accuracy from which on a prompt gets no bonus; above 1 every prompt gets some."""
    include_all_wrong: bool = True
    """Whether a group without any correct rollout, which has no advantage to learn from, is explored."""
    mean_floor: float = Field(0.1, ge=0, lt=1)
    """Where the mean weight of the step's prompts is below this, all get more until it is there; 0 is off.
    Without it few hard prompts get all of a growing alpha."""
    entropy_ceiling: float | None = Field(1.0, gt=0)
    """A prompt whose entropy is above this many times H0 gets no bonus; null is off. Without an anchored target
    there is no H0, and in bypass mode no H(q): it is then not read."""

    def weights(self, groups: Groups) -> np.ndarray:
        """``(P,)`` float64 >= 0."""
        margin = np.maximum(0.0, self.rho - groups.accuracy)
        weights = margin / self.rho if self.shape == "linear" else (margin > 0).astype(np.float64)
        explores = self._explores(groups)
        return self._lifted(np.where(explores, weights, 0.0), explores)

    def _explores(self, groups: Groups) -> np.ndarray:
        """``(P,)`` bool: prompts that may get a weight."""
        explores = np.full(len(groups.accuracy), True)
        if not self.include_all_wrong:
            explores &= groups.accuracy != 0
        if self.entropy_ceiling is not None and groups.entropy is not None and groups.initial_entropy is not None:
            # NaN compares false: a prompt without response tokens is not above anything.
            explores &= ~(groups.entropy > self.entropy_ceiling * groups.initial_entropy)
        return explores

    def _lifted(self, weights: np.ndarray, explores: np.ndarray) -> np.ndarray:
        """The weights, mixed with 1 on all prompts that explore until their mean is the floor."""
        room = np.where(explores, 1.0 - weights, 0.0)
        if not room.any():
            return weights
        missing = max(0.0, self.mean_floor - weights.mean())
        return weights + min(1.0, missing / room.mean()) * room


@register_part("historical_accuracy")
class Historical(Allocation):
    """w(q) = hard_weight if Acc_h(q) < mean of Acc_h over all questions else easy_weight (CEEH, arXiv 2602.22642).

    Acc_h is the question's accuracy in the steps in which it came up, an average that rises faster than it falls
    (entropy.question_memory.ema_up and ema_down); the threshold moves with the policy. Both include this step: that is
    our reading.

    With the weights 5 and 1 alpha is CEEH-ME's lambda_0.

    >>> groups = Groups(np.zeros(2), np.full(2, 8), np.arange(2), history=np.array([0.2, 0.6]), history_mean=0.5)
    >>> Historical().weights(groups)
    array([5., 1.])
    """

    uses_questions: ClassVar[bool] = True

    hard_weight: float = Field(5.0, ge=0)
    """Weight of questions whose remembered accuracy is below the mean of all."""
    easy_weight: float = Field(1.0, ge=0)
    """Weight of the other questions."""

    def weights(self, groups: Groups) -> np.ndarray:
        return np.where(groups.history < groups.history_mean, self.hard_weight, self.easy_weight)


def allocate(allocation: Any, groups: Groups) -> np.ndarray:
    """w_i = w(q_i), 0 on padding: one weight per row.

    Args:
        allocation: a part with ``weights(groups) -> (P,)``.
        groups: the step's prompts; ``prompt_of_row`` is ``(N,)``, -1 on padding.

    Returns:
        ``(N,)`` float32 >= 0, the share of alpha that each trajectory gets.

    Raises:
        AllocationError: the allocation returned another shape, a negative or a non-finite weight.

    >>> groups = Groups(np.array([0.25, 1.0]), size=np.array([4, 4]), prompt_of_row=np.array([1, 0, -1]))
    >>> allocate(Difficulty(rho=0.5), groups)
    array([0. , 0.5, 0. ], dtype=float32)
    """
    weights = np.asarray(allocation.weights(groups), dtype=np.float64)
    _require_usable(allocation, weights, len(groups.accuracy))
    # A prompt -1 reads the appended zero: padding rows belong to no prompt.
    return np.append(weights, 0.0)[groups.prompt_of_row].astype(np.float32)


def _require_usable(allocation: Any, weights: np.ndarray, prompts: int) -> None:
    name = f"allocation {allocation.kind!r}"
    if weights.shape != (prompts,):
        raise AllocationError(f"{name} returned weights of shape {weights.shape} for {prompts} prompts")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise AllocationError(
            f"{name} returned {weights[bad[0]]} for prompt {bad[0]}; weights must be finite and not negative"
        )
