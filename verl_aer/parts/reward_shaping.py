"""Reward shapings: add a term to each rollout's reward before advantages are computed.

They run on the driver, once per step. They do not affect group accuracy, which comes from correctness.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from verl_aer.parts.base import Part, register_part
from verl_aer.rollouts.groups import DIFFICULTIES, difficulty
from verl_aer.rollouts.types import Rollouts, ShapingError

Memory = Mapping[str, float]
"""State of a shaping between steps: a few named numbers, saved with the checkpoint."""


class RewardShaping(Part, role="reward_shaping"):
    """Base of reward shapings."""

    changes: ClassVar[bool] = True
    """Whether the rewards change; if not, they are not written."""

    uses_accuracy: ClassVar[bool] = True
    """Whether it reads ``rollouts.correct`` or the groups' accuracy; if not, any reward works."""

    uses_questions: ClassVar[bool] = False
    """Whether ``rollouts.groups`` must hold the history of each question."""

    uses_entropy: ClassVar[bool] = False
    """Whether it needs ``rollouts.entropy``, which veRL does not have in bypass mode."""

    @abstractmethod
    def change(self, rollouts: Rollouts, memory: Memory) -> tuple[np.ndarray, Memory]:
        """Return the change of each row's reward, ``(N,)``, and the new memory.

        Only rows with ``rollouts.is_last`` are read. ``memory`` is the one that the previous step returned; it is
        empty in the first step.
        """


@register_part("none")
class NoRewardShaping(RewardShaping):
    """R' = R."""

    changes: ClassVar[bool] = False
    uses_accuracy: ClassVar[bool] = False

    def change(self, rollouts: Rollouts, memory: Memory) -> tuple[np.ndarray, Memory]:
        return np.zeros(len(rollouts.correct)), memory


@register_part("length")
class Length(RewardShaping):
    """R' = R - beta * c * clip((len - L_x) / L_x, -0.9, 1) where Acc(x) > Acc_h(x), R' = R elsewhere (CEEH).

    c is the rollout's correctness and L_x the length of the shortest correct response to the question so far. Once the
    accuracy on a question improves, its answers are discouraged from getting longer. Source: arXiv 2602.22642. L_x
    excludes the current step, unless the question has not been solved before; that is our interpretation.
    """

    uses_questions: ClassVar[bool] = True

    beta: float = Field(default=0.1, ge=0)
    """Reward that a correct answer loses if it is twice as long as the shortest one. The paper's table has 0.1 and
    0.2."""

    def change(self, rollouts: Rollouts, memory: Memory) -> tuple[np.ndarray, Memory]:
        groups = rollouts.groups
        assert groups.history is not None, "uses_questions"
        assert groups.shortest is not None, "uses_questions"
        improved = groups.accuracy > groups.history
        # The 1.0 of a question that was never solved is not used: the question has no correct response.
        shortest = np.append(np.where(np.isnan(groups.shortest), 1.0, groups.shortest), 1.0)[groups.prompt_of_row]
        excess = np.clip((rollouts.tokens - shortest) / shortest, -0.9, 1.0)
        applies = np.append(improved, False)[groups.prompt_of_row]
        return np.where(applies, -self.beta * rollouts.correct * excess, 0.0), memory


def change_rewards(shaping: RewardShaping, rollouts: Rollouts, memory: Memory) -> tuple[np.ndarray, Memory]:
    """Compute the change of each row's reward, 0 on rows that carry no reward, and the new memory.

    Raises ShapingError if the change does not have the shape ``(N,)`` or is not finite.
    """
    change, memory = shaping.change(rollouts, memory)
    name = f"reward shaping {shaping.kind!r}"
    if np.shape(change) != rollouts.is_last.shape:
        raise ShapingError(f"{name} returned shape {np.shape(change)} for {len(rollouts.is_last)} rows")
    change = np.where(rollouts.is_last, change, 0.0)
    bad = np.flatnonzero(~np.isfinite(change))
    if len(bad):
        raise ShapingError(f"{name} returned {change[bad[0]]} for row {bad[0]}; it must be finite")
    return change, memory


_MARGIN = {"easy": 0.15, "medium": 0.25, "hard": 0.35}
_HUBER = {"easy": 2.0, "medium": 3.0, "hard": 4.0}
_TEMPERATURE = {"easy": 2.0, "medium": 2.5, "hard": 3.0}
_CAP = {"easy": 1.0, "medium": 1.0, "hard": 1.2}
_WRONG = {"easy": 0.6, "medium": 0.8, "hard": 1.0}


@register_part("ares")
class Ares(RewardShaping):
    """R' = R + s_b(N), N the high-entropy windows of a rollout and b its prompt's difficulty (ARES):

        N      = tokens whose following ``window`` tokens have a mean entropy >= threshold
        b      = easy where g(q) >= 2/3, medium where g(q) >= 1/3, else hard
        delta  = N - T_b,   m = max(1, f_b * max(T_b, 1)),   C = gain_b * cap_b
        P(x)   = min(C, C * huber(x) / (m + kappa_b)),   sigma(x) = 1 / (1 + exp(-x / t_b)),   x+ = max(x, 0)

                 correct                                              wrong
        easy     -P((delta - m)+)                                     0.6 * C * sigma((delta - m)+)
        medium   -P((|delta| - m)+)                                   0.8 * C * sigma((delta - m)+)
        hard     C * sigma(delta + m) if delta >= -m                  C * sigma((delta - m)+)
                 else -min(C, C * huber(-delta - m) / (2 (m + kappa_b)))

    Easy prompts are rewarded for less deliberation, hard prompts for more. gain_b starts at 0.5 and moves by rate * e
    within [0, 2], with e = mean N - T_b, or T_b - mean N for hard prompts. Constants and formulas are those of the
    authors' code (arXiv 2510.08457), which differs in three ways. It counts only tokens of a list of English words.
    Its T_b is the mean of the same batch, so e is a rounding error and gain_b never moves; here T_b is the running
    mean of earlier steps. It shapes the reward before the difficulty is known. The dynamic KL coefficient is left out
    because veRL's loss has a single one.
    """

    uses_entropy: ClassVar[bool] = True

    window: int = Field(default=4, ge=1)
    """Window length, tokens."""
    percentile: float = Field(default=0.95, gt=0, lt=1)
    """Percentile of a rollout's window means; its median over the step's rollouts sets the threshold."""
    threshold_ema: float = Field(default=0.99, ge=0, lt=1)
    """Weight of earlier steps in the threshold."""
    target_ema: float = Field(default=0.9, ge=0, lt=1)
    """Weight of earlier steps in T_b, the target number of windows per difficulty."""
    rate: float = Field(default=0.05, ge=0)
    """Change of gain_b per unit of e and step."""
    scale: float = Field(default=1.0, ge=0)
    """Factor on the reward change."""

    def change(self, rollouts: Rollouts, memory: Memory) -> tuple[np.ndarray, Memory]:
        assert rollouts.entropy is not None, "uses_entropy"
        assert rollouts.mask is not None, "uses_entropy"
        means = [
            window_means(entropy[mask], self.window)
            for entropy, mask in zip(rollouts.entropy, rollouts.mask, strict=True)
        ]
        memory = {**memory, **self._threshold(means, rollouts, memory)}
        counts = np.array([float((mean >= memory.get("threshold", np.inf)).sum()) for mean in means])
        bucket = difficulty(rollouts.groups.accuracy)
        change = np.zeros(len(counts))
        for name in DIFFICULTIES:
            rows = rollouts.is_last & np.append(bucket == name, False)[rollouts.groups.prompt_of_row]
            if rows.any():
                memory = {**memory, **self._control(name, counts[rows].mean(), memory)}
                change[rows] = self._shaped(name, counts[rows], rollouts.correct[rows], memory)
        return self.scale * change, memory

    def _threshold(self, means: list[torch.Tensor], rollouts: Rollouts, memory: Memory) -> dict[str, float]:
        """Update the running mean of the threshold; the first step starts it."""
        tops = [
            torch.quantile(mean.double(), self.percentile).item()
            for mean, is_last in zip(means, rollouts.is_last, strict=True)
            if is_last and len(mean)
        ]
        if not tops:
            return {}
        here = float(np.median(tops))
        before = memory.get("threshold", here)
        return {"threshold": self.threshold_ema * before + (1 - self.threshold_ema) * here}

    def _control(self, bucket: str, count: float, memory: Memory) -> dict[str, float]:
        """Update gain_b by the distance from T_b, and T_b for the next step."""
        target = memory.get(f"next_target_{bucket}", count)
        error = target - count if bucket == "hard" else count - target
        gain = memory.get(f"gain_{bucket}", 0.5) + self.rate * error
        return {
            f"target_{bucket}": target,
            f"next_target_{bucket}": self.target_ema * target + (1 - self.target_ema) * count,
            f"gain_{bucket}": min(max(gain, 0.0), 2.0),
        }

    def _shaped(self, bucket: str, count: np.ndarray, correct: np.ndarray, memory: Memory) -> np.ndarray:
        target, kappa = memory[f"target_{bucket}"], _HUBER[bucket]
        cap = memory[f"gain_{bucket}"] * _CAP[bucket]
        margin = max(1.0, _MARGIN[bucket] * max(target, 1.0))
        delta = count - target

        def penalty(excess: np.ndarray, share: float = 1.0) -> np.ndarray:
            return -np.minimum(cap, share * cap * _huber(excess, kappa) / (margin + kappa))

        def reward(excess: np.ndarray) -> np.ndarray:
            return cap / (1 + np.exp(-excess / _TEMPERATURE[bucket]))

        when_correct = {
            "easy": lambda: penalty(delta - margin),
            "medium": lambda: penalty(np.abs(delta) - margin),
            "hard": lambda: np.where(delta >= -margin, reward(delta + margin), penalty(-delta - margin, share=0.5)),
        }[bucket]()
        when_wrong = _WRONG[bucket] * reward(np.maximum(delta - margin, 0.0))
        return np.where(correct > 0.5, when_correct, when_wrong)


def window_means(entropy: torch.Tensor, window: int) -> torch.Tensor:
    """Compute the mean of the ``window`` entropies after each token, ``(n - window,)``; later tokens have none.

    >>> window_means(torch.tensor([9.0, 1.0, 3.0, 5.0]), window=2)
    tensor([2., 4.])
    """
    return entropy[1:].unfold(0, window, 1).mean(dim=-1) if len(entropy) > window else entropy[:0]


def _huber(x: np.ndarray, kappa: float) -> np.ndarray:
    x = np.maximum(x, 0.0)
    return np.where(x <= kappa, x**2 / (2 * kappa), x - kappa / 2)
