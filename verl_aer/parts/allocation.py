"""Allocations: distribute the global coefficient alpha over the prompts.

    lambda_i = alpha * w(q_i)

Every rollout of prompt q gets the same weight w(q) >= 0. The driver computes it from the group's accuracy. It is
constant within the step, and no gradient flows through it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from verl_aer.errors import VerlAerError
from verl_aer.parts.base import Part, register_part
from verl_aer.rollouts.groups import Groups


class AllocationError(VerlAerError, ValueError):
    """Invalid weights from an allocation; the message names the prompt and the value."""


class Allocation(Part, role="allocation"):
    """Base of allocations: a rule that maps groups to one weight per prompt."""

    uses_accuracy: ClassVar[bool] = True
    """Whether the weights depend on group accuracy; if not, a group of one rollout is enough."""

    uses_questions: ClassVar[bool] = False
    """Whether ``groups`` must hold the history of each question."""

    @abstractmethod
    def weights(self, groups: Groups) -> np.ndarray:
        """Return the weight of each prompt, ``(P,)`` float64, finite and >= 0."""


@register_part("uniform")
class Uniform(Allocation):
    """w(q) = 1: every trajectory gets the global coefficient."""

    uses_accuracy: ClassVar[bool] = False

    def weights(self, groups: Groups) -> np.ndarray:
        return np.ones(len(groups.accuracy))


@register_part("difficulty")
class Difficulty(Allocation):
    """Harder prompts get more, easy prompts get none; with g the group's accuracy,

        linear       w(q) = max(0, rho - g) / rho
        step         w(q) = 1 if g < rho else 0

    and then, in this order:

        w(q) = 0                      where g = 0, unless include_all_wrong
        w(q) = 0                      where H(q) > entropy_ceiling * H0
        w(q) + s * (1 - w(q))         for all other prompts, with the s >= 0 that raises mean(w) to mean_floor

    H(q) is the mean entropy of the prompt's rollouts.

    As the policy improves, fewer prompts stay below rho. Without the floor, alpha then grows by 1 / mean(w), because
    it can move the mean entropy only through these few prompts. Each of them gets the full alpha: their entropy
    explodes while the mean stays on target. With the floor, alpha acts through all prompts, and harder prompts still
    get more. The ceiling stops the bonus of a prompt whose entropy is above the initial level. Floor and ceiling are
    our addition, chosen with ``python -m benchmarks.actuator``.

    This is our interpretation of AER (arXiv 2510.10959). Its description gives the threshold rho, "harder gets more"
    and "easy gets less or zero", but not the map. max(0, rho - g) without the division is equivalent if alpha, ki, kp
    and the bounds are divided by rho.

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
    rho: float = Field(default=0.5, gt=0)
    """Prompts with group accuracy >= rho get no bonus; a value above 1 gives every prompt some bonus."""
    include_all_wrong: bool = True
    """Whether groups without a correct rollout get a bonus; they have no advantage to learn from."""
    mean_floor: float = Field(default=0.1, ge=0, lt=1)
    """Lower bound of the step's mean weight; the weights are raised until the mean reaches it. 0 disables it; few
    hard prompts then get all of a growing alpha."""
    entropy_ceiling: float | None = Field(default=1.0, gt=0)
    """Prompts whose entropy is above this multiple of H0 get no bonus; null disables it. Ignored without an anchored
    target, which defines H0, and in bypass mode, which has no H(q)."""

    def weights(self, groups: Groups) -> np.ndarray:
        margin = np.maximum(0.0, self.rho - groups.accuracy)
        weights = margin / self.rho if self.shape == "linear" else (margin > 0).astype(np.float64)
        explores = self._explores(groups)
        return self._apply_floor(np.where(explores, weights, 0.0), explores)

    def _explores(self, groups: Groups) -> np.ndarray:
        """Return which prompts may get a weight, ``(P,)`` bool."""
        explores = np.full(len(groups.accuracy), True)
        if not self.include_all_wrong:
            explores &= groups.accuracy != 0
        if self.entropy_ceiling is not None and groups.entropy is not None and groups.initial_entropy is not None:
            # NaN compares false: a prompt without response tokens is never above the ceiling.
            explores &= ~(groups.entropy > self.entropy_ceiling * groups.initial_entropy)
        return explores

    def _apply_floor(self, weights: np.ndarray, explores: np.ndarray) -> np.ndarray:
        """Move the weights of all prompts that explore towards 1 until the mean reaches the floor."""
        room = np.where(explores, 1.0 - weights, 0.0)
        if not room.any():
            return weights
        missing = max(0.0, self.mean_floor - weights.mean())
        return weights + min(1.0, missing / room.mean()) * room


@register_part("historical_accuracy")
class Historical(Allocation):
    """w(q) = hard_weight if Acc_h(q) < mean of Acc_h over all questions else easy_weight (CEEH, arXiv 2602.22642).

    Acc_h is the running average of the question's accuracy over the steps that contain it. It rises faster than it
    falls (entropy.question_memory.ema_up and ema_down). The threshold moves with the policy. Both include the current
    step; that is our interpretation.

    With the weights 5 and 1, alpha is CEEH-ME's lambda_0.

    >>> groups = Groups(np.zeros(2), np.full(2, 8), np.arange(2), history=np.array([0.2, 0.6]), history_mean=0.5)
    >>> Historical().weights(groups)
    array([5., 1.])
    """

    uses_questions: ClassVar[bool] = True

    hard_weight: float = Field(default=5.0, ge=0)
    """Weight of questions with Acc_h below the mean over all questions."""
    easy_weight: float = Field(default=1.0, ge=0)
    """Weight of the other questions."""

    def weights(self, groups: Groups) -> np.ndarray:
        assert groups.history is not None, "uses_questions"
        assert groups.history_mean is not None, "uses_questions"
        return np.where(groups.history < groups.history_mean, self.hard_weight, self.easy_weight)


def allocate(allocation: Allocation, groups: Groups) -> np.ndarray:
    """Compute the weight of each row, w_i = w(q_i); padding gets 0.

    Args:
        allocation: a part with ``weights(groups) -> (P,)``.
        groups: the step's prompts; ``prompt_of_row`` is ``(N,)``, -1 on padding.

    Returns:
        ``(N,)`` float32 >= 0, the share of alpha that each trajectory gets.

    Raises:
        AllocationError: the weights have the wrong shape, or one of them is negative or not finite.

    >>> groups = Groups(np.array([0.25, 1.0]), size=np.array([4, 4]), prompt_of_row=np.array([1, 0, -1]))
    >>> allocate(Difficulty(rho=0.5), groups)
    array([0. , 0.5, 0. ], dtype=float32)
    """
    weights = np.asarray(allocation.weights(groups), dtype=np.float64)
    _require_usable(allocation, weights, len(groups.accuracy))
    # Padding rows have prompt -1, which indexes the appended zero.
    return np.append(weights, 0.0)[groups.prompt_of_row].astype(np.float32)


def _require_usable(allocation: Allocation, weights: np.ndarray, prompts: int) -> None:
    name = f"allocation {allocation.kind!r}"
    if weights.shape != (prompts,):
        raise AllocationError(f"{name} returned weights of shape {weights.shape} for {prompts} prompts")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise AllocationError(
            f"{name} returned {weights[bad[0]]} for prompt {bad[0]}; weights must be finite and not negative"
        )
