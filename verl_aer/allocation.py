"""Allocation: which trajectory gets how much exploration.

    lambda_i = alpha * w(q_i)

Every rollout of prompt q gets the same weight w(q) >= 0, computed on the driver from the group's accuracy and
constant within the step; no gradient flows through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from verl_aer.correctness import Groups
from verl_aer.methods.registry import Part, register_allocation

SHAPES = ("linear", "linear_raw", "step", "power")


class AllocationError(ValueError):
    """An allocation returned weights that cannot be used; the message names the prompt and the value."""


class Allocation(Part):
    """Base of allocations: a rule from groups to one weight per prompt."""

    uses_accuracy: ClassVar[bool] = True
    """Whether the weights depend on group accuracy; without it a group of one rollout is enough."""

    uses_questions: ClassVar[bool] = False
    """Whether ``groups`` has to hold what is remembered of each question."""

    def weights(self, groups: Groups) -> np.ndarray:
        """Weight of each prompt, ``(P,)`` float64, finite and >= 0."""
        raise NotImplementedError


@register_allocation("uniform")
@dataclass
class Uniform(Allocation):
    """w(q) = 1: every trajectory gets the global coefficient."""

    uses_accuracy: ClassVar[bool] = False

    def weights(self, groups: Groups) -> np.ndarray:
        """``(P,)`` ones."""
        return np.ones(len(groups.accuracy))


@register_allocation("difficulty")
@dataclass
class Difficulty(Allocation):
    """Harder prompts get more, easy ones none: with g the group's accuracy,

        linear       w(q) = max(0, rho - g) / rho
        linear_raw   w(q) = max(0, rho - g)
        step         w(q) = 1 if g < rho else 0
        power        w(q) = (max(0, rho - g) / rho) ** power

    then w(q) = 0 where g = 0 unless include_all_wrong, then w / mean(w) with mean_normalize.

    ``linear`` and ``linear_raw`` differ in units only: raw with alpha, eta and the bounds divided by rho
    gives the same lambda. Our reading of AER (arXiv 2510.10959), whose description gives the threshold rho,
    "harder gets more" and "easy gets less or zero", and not the map itself.

    Args:
        shape: one of SHAPES.
        rho: accuracy from which on a prompt gets nothing, > 0; above 1 every prompt explores.
        power: exponent of shape=power, > 0; other shapes do not read it.
        mean_normalize: divide by the mean weight of the step's prompts, so that alpha is the mean
            coefficient; few hard prompts then get large ones.
        include_all_wrong: whether a group without any correct rollout, which has no advantage to learn
            from, is explored.

    >>> from verl_aer.correctness import Groups
    >>> accuracy = np.array([0.0, 0.125, 0.5, 1.0])
    >>> groups = Groups(accuracy, size=np.full(4, 8), prompt_of_row=np.arange(4))
    >>> Difficulty(rho=0.5).weights(groups)
    array([1.  , 0.75, 0.  , 0.  ])
    >>> Difficulty(shape="power", power=2.0).weights(groups)
    array([1.    , 0.5625, 0.    , 0.    ])
    """

    shape: str = "linear"
    rho: float = 0.5
    power: float = 1.0
    mean_normalize: bool = False
    include_all_wrong: bool = True

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if self.shape not in SHAPES:
            found.append(("shape", f"one of {', '.join(SHAPES)}"))
        if self.rho <= 0:
            found.append(("rho", "> 0"))
        if self.power <= 0:
            found.append(("power", "> 0"))
        return found

    def weights(self, groups: Groups) -> np.ndarray:
        """``(P,)`` float64 >= 0, exactly 0 where accuracy >= rho."""
        margin = np.maximum(0.0, self.rho - groups.accuracy)
        if self.shape == "linear":
            weights = margin / self.rho
        elif self.shape == "linear_raw":
            weights = margin
        elif self.shape == "step":
            weights = (margin > 0).astype(np.float64)
        elif self.shape == "power":
            weights = (margin / self.rho) ** self.power
        else:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        if not self.include_all_wrong:
            weights = np.where(groups.accuracy == 0, 0.0, weights)
        if self.mean_normalize and weights.any():
            weights = weights / weights.mean()
        return weights


@register_allocation("historical")
@dataclass
class Historical(Allocation):
    """w(q) = hard_weight if Acc_h(q) < mean of Acc_h over all questions else easy_weight (CEEH, arXiv 2602.22642).

    Acc_h is the question's accuracy in the steps in which it came up, an average that rises faster than it falls
    (entropy.memory.rise and fall); the threshold moves with the policy. Both include this step: that is our reading.

    hard_weight, easy_weight: >= 0; with 5 and 1 alpha is CEEH-ME's lambda_0.

    >>> groups = Groups(np.zeros(2), np.full(2, 8), np.arange(2), history=np.array([0.2, 0.6]), history_mean=0.5)
    >>> Historical().weights(groups)
    array([5., 1.])
    """

    uses_questions: ClassVar[bool] = True

    hard_weight: float = 5.0
    easy_weight: float = 1.0

    def problems(self) -> list[tuple[str, str]]:
        return [(name, ">= 0") for name in ("hard_weight", "easy_weight") if getattr(self, name) < 0]

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
