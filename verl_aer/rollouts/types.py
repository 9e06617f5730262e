"""The rollouts of a step on the driver, before the update: rows of a batch, rollouts, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from verl_aer.errors import VerlAerError
from verl_aer.rollouts.groups import CorrectnessConfig, Groups, Verdicts, VerdictsSoFar, group_rows, judge


class ShapingError(VerlAerError, ValueError):
    """Invalid result of a shaping; the message names the row and the value."""


@dataclass(frozen=True)
class Rollouts:
    """The N rows of a batch.

    groups: the prompts, with the history of their questions if a part of the method uses it.
    correct: ``(N,)`` float64 in [0, 1], 0 on padding, NaN if unknown. tokens: ``(N,)`` float64, response tokens of the
    whole rollout, over all of its outputs. is_last: ``(N,)`` bool, True on the row that carries its rollout's reward;
    False on padding.
    entropy, mask: ``(N, T)`` nats and bool of each response token; None if no part of the method uses them.
    """

    groups: Groups
    correct: np.ndarray
    tokens: np.ndarray
    is_last: np.ndarray
    entropy: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def shortest_correct(self) -> np.ndarray:
        """Return the tokens of each prompt's shortest correct rollout, ``(P,)``; NaN if none is correct."""
        shortest = np.full(len(self.groups.accuracy), np.inf)
        solved = self.is_last & (self.correct > 0.5)
        np.minimum.at(shortest, self.groups.prompt_of_row[solved], self.tokens[solved])
        return np.where(np.isinf(shortest), np.nan, shortest)


@dataclass(frozen=True)
class Tokens:
    """The tokens of N rows, each tensor ``(N, T)``; values outside the mask are undefined.

    advantages: float32. mask: bool, the tokens that the policy loss counts. log_probs: float32, of the sampled tokens
    under the policy of the old log-probs. entropy: nats, under the same policy; None if veRL does not compute it.
    """

    advantages: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor
    entropy: torch.Tensor | None


@dataclass(frozen=True)
class BatchRows:
    """Input of the entropy control from a training batch; N rows in the order of the batch's keys.

    uid: prompt of each row, ``(N,)``; session, index: ``(N,)`` int; is_padding: ``(N,)`` bool.
    reward: ``(N,)`` float64, the reward before any KL penalty. acc: the reported correctness of each row, None if the
    reward reports no number. acc_is_reward: ``(N,)`` bool, True if veRL reports the reward itself as ``acc``.
    entropy_nats: ``(N,)`` float64, the measure under the policy of the old log-probs, summed over the response's
    tokens with the weights of the token selection; None if veRL does not compute it (bypass mode). tokens: ``(N,)``
    float64. question: id of each row's question, None if no part of the method uses it. entropy, mask: ``(N, T)``
    float32 and bool, None likewise.
    """

    uid: list[str]
    session: np.ndarray
    index: np.ndarray
    is_padding: np.ndarray
    reward: np.ndarray
    acc: Sequence[float | None]
    acc_is_reward: np.ndarray
    entropy_nats: np.ndarray | None
    tokens: np.ndarray
    question: list[str] | None = None
    entropy: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def judge(self, correctness: CorrectnessConfig, so_far: VerdictsSoFar) -> Verdicts:
        """Compute which rows are correct. Padding rows are not correct and do not count as unreported."""
        real = np.flatnonzero(~self.is_padding)
        verdicts = judge(
            self.reward[real],
            [self.acc[row] for row in real],
            self.acc_is_reward[real],
            correctness.threshold,
            correctness.on_missing,
            so_far,
        )
        correct, unreported = np.zeros(len(self.uid)), np.zeros(len(self.uid), dtype=bool)
        unreported[real] = verdicts.unreported
        if verdicts.correct is None:
            return replace(verdicts, unreported=unreported)
        correct[real] = verdicts.correct
        return replace(verdicts, correct=correct, unreported=unreported)

    def rollouts(self, correct: np.ndarray | None) -> Rollouts:
        """Return the rows as input of the method's parts, without the history of their questions.

        correct: ``(N,)`` in [0, 1], 0 on padding; None if unknown.
        """
        groups = group_rows(self.uid, self.session, self.index, correct, self.is_padding)
        assert groups.rollout_of_row is not None, "from group_rows"
        assert groups.is_last is not None, "from group_rows"
        real = ~self.is_padding
        rollout = groups.rollout_of_row[real]
        tokens = self.tokens.copy()
        tokens[real] = np.bincount(rollout, weights=self.tokens[real])[rollout]
        if correct is None:
            correct = np.where(self.is_padding, 0.0, np.nan)
        return Rollouts(groups, correct, tokens, groups.is_last, self.entropy, self.mask)

    def question_of_prompt(self, groups: Groups) -> list[str]:
        """Return the P ids of the prompts' questions."""
        assert self.question is not None, "uses_questions"
        named = dict(zip(groups.prompt_of_row.tolist(), self.question, strict=True))
        return [named[prompt] for prompt in range(len(groups.accuracy))]
