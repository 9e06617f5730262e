"""Group accuracy: the share of a prompt's rollouts that are correct.

    g(q) = (1/G) * sum_i c_i        c_i in [0, 1], G the number of rollouts of q without padding

Correctness is not reward. A reward may be +-1 or include length penalties or format bonuses; its mean is then not the
rate at which the policy solves the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from verl_aer._settings import Settings
from verl_aer.errors import VerlAerError

DIFFICULTIES = ("easy", "medium", "hard")
"""Buckets of prompts by group accuracy. They do not depend on rho, so that runs can be compared."""

EASY_FROM, MEDIUM_FROM = 2 / 3, 1 / 3
"""Lowest accuracy of easy and of medium prompts, as in ARES (arXiv 2510.08457)."""


def difficulty(accuracy: np.ndarray) -> np.ndarray:
    """Return the bucket of each prompt: easy if g >= 2/3, medium if g >= 1/3, else hard.

    >>> difficulty(np.array([1.0, 2 / 3, 0.5, 1 / 3, 0.25])).tolist()
    ['easy', 'easy', 'medium', 'medium', 'hard']
    """
    return np.where(accuracy >= EASY_FROM, "easy", np.where(accuracy >= MEDIUM_FROM, "medium", "hard"))


class CorrectnessError(VerlAerError, ValueError):
    """Missing or contradictory information about which rollouts are correct."""


class CorrectnessConfig(Settings):
    """Rule for correct rollouts: reward > ``threshold`` if it is set, else the value under ``reward_key``."""

    reward_key: str = "acc"
    """Key of the correctness, a value in [0, 1], in the reward function's result."""
    threshold: float | None = None
    """A rollout is correct if its reward is above this value; ``reward_key`` is then ignored. null uses
    ``reward_key``."""
    on_missing: Literal["error", "wrong"] = "wrong"
    """How to treat a rollout without ``reward_key`` if earlier rollouts had it: ``error`` stops the run, ``wrong``
    counts it as wrong, with a warning and a metric."""


@dataclass(frozen=True)
class Groups:
    """The prompts of one step.

    accuracy: ``(P,)`` float64 in [0, 1], mean correctness of the prompt's rollouts; NaN if the correctness is unknown,
    which is allowed only for methods that do not use it. size: ``(P,)`` int64, number of rollouts of the prompt.
    prompt_of_row: ``(N,)`` int64, the prompt of each row, -1 on padding.

    Set by ``group_rows``: rollout_of_row: ``(N,)`` int64, the rollout of each row, -1 on padding. is_last: ``(N,)``
    bool, True on the last row of each rollout, whose correctness is that of the rollout; False on padding.

    Set by the question memory (``verl_aer.rollouts.question_memory``); None if no part of the method uses it:
    history: ``(P,)`` float64, Acc_h of the prompt's question after this step. history_mean: mean of Acc_h over all
    questions. shortest: ``(P,)`` float64, L_x in tokens, NaN if no correct response is known.

    Set before the weights are computed: entropy: ``(P,)`` float64, mean entropy of each prompt's rollouts by the
    configured measure, nats per token, NaN for a prompt without response tokens; None if the driver does not know it
    (bypass mode). initial_entropy: H0, nats per token; None until it is known, or if the target is not anchored.
    """

    accuracy: np.ndarray
    size: np.ndarray
    prompt_of_row: np.ndarray
    rollout_of_row: np.ndarray | None = None
    is_last: np.ndarray | None = None
    history: np.ndarray | None = None
    history_mean: float | None = None
    shortest: np.ndarray | None = None
    entropy: np.ndarray | None = None
    initial_entropy: float | None = None


@dataclass(frozen=True)
class Verdicts:
    """Correctness of N trajectories.

    correct: ``(N,)`` float64 in [0, 1]; None if it is unknown or invalid. unreported: ``(N,)`` bool, trajectories that
    count as wrong because the reward reported nothing for them. problem: why ``correct`` is None, else empty.
    """

    correct: np.ndarray | None
    unreported: np.ndarray
    problem: str = ""


@dataclass(frozen=True)
class VerdictsSoFar:
    """Summary of the verdicts of a run so far.

    reported: whether the reward has reported any correctness. unreported: whether a rollout has counted as wrong
    because the reward reported nothing for it. problem: the first reason why the correctness was unknown, else empty.
    The problem holds for the rest of the run: rewards of +-1 do not become correctness in a batch that only has 1.
    """

    reported: bool = False
    unreported: bool = False
    problem: str = ""

    def after(self, verdicts: Verdicts) -> VerdictsSoFar:
        """Return the summary after one more batch."""
        return VerdictsSoFar(
            reported=self.reported or verdicts.correct is not None,
            unreported=self.unreported or bool(verdicts.unreported.any()),
            problem=self.problem or verdicts.problem,
        )


def judge(
    reward: np.ndarray,
    acc: Sequence[float | None],
    acc_is_reward: np.ndarray,
    threshold: float | None,
    on_missing: str,
    so_far: VerdictsSoFar,
) -> Verdicts:
    """Compute c_i = 1[reward_i > threshold] if a threshold is set, else c_i = acc_i.

    Args:
        reward: ``(N,)``, each trajectory's reward before any KL penalty; only read with a threshold.
        acc: the reported correctness of N trajectories, in [0, 1]; None for a trajectory without one.
        acc_is_reward: ``(N,)`` bool, True if veRL has reported the reward itself as ``acc``, which must be 0 or 1.
        threshold: a trajectory is correct if its reward is above it, regardless of ``acc``; None if none is set.
        on_missing: ``error`` or ``wrong``. With ``wrong``, c_i = 0 if the reward reports nothing, provided that it has
            reported something in this run.
        so_far: the summary of the previous batches.

    >>> nothing_known = VerdictsSoFar()
    >>> judge(np.array([0.3, 1.0]), [0.3, 1.0], np.array([True, True]), 0.5, "wrong", nothing_known).correct
    array([0., 1.])
    >>> judge(np.array([0.3, 1.0]), [None, 1.0], np.array([False, True]), None, "wrong", nothing_known).correct
    array([0., 1.])
    """
    nowhere = np.zeros(len(acc), dtype=bool)
    unreported = np.array([value is None for value in acc], dtype=bool)
    if so_far.problem:
        return Verdicts(None, nowhere, so_far.problem)
    if threshold is not None:
        return _verdicts((reward > threshold).astype(np.float64), nowhere, _not_finite(reward))
    if unreported.all() and not so_far.reported:
        return Verdicts(None, nowhere, _UNKNOWN_CORRECTNESS)
    if unreported.any() and on_missing == "error":
        return Verdicts(None, nowhere, _only_some(np.flatnonzero(unreported)[0]))
    correct = np.array([0.0 if value is None else value for value in acc], dtype=np.float64)
    return _verdicts(correct, unreported, _not_binary(correct, acc_is_reward) or _not_in_unit_interval(correct))


_UNKNOWN_CORRECTNESS = (
    "the correctness of the rollouts is unknown: the reward reports no number under entropy.correctness.reward_key, "
    "and entropy.correctness.threshold is not set. Let the reward return that key (0 or 1), or set the threshold above "
    "which a reward means a correct answer (0 for rewards of +-1)."
)


def _verdicts(correct: np.ndarray, unreported: np.ndarray, problem: str) -> Verdicts:
    return Verdicts(None, np.zeros_like(unreported), problem) if problem else Verdicts(correct, unreported)


def _only_some(row: int) -> str:
    return (
        "the reward reports a number under entropy.correctness.reward_key only for some rollouts "
        f"(not for row {row}). Let it return that key for every rollout, including wrong and empty answers, or count "
        "such rollouts as wrong with entropy.correctness.on_missing=wrong."
    )


def _not_finite(reward: np.ndarray) -> str:
    bad = np.flatnonzero(~np.isfinite(reward))
    return f"row {bad[0]} has the reward {reward[bad[0]]}, which must be finite." if len(bad) else ""


def _not_binary(correct: np.ndarray, acc_is_reward: np.ndarray) -> str:
    bad = np.flatnonzero(acc_is_reward & (correct != 0) & (correct != 1))
    if not len(bad):
        return ""
    return (
        f"row {bad[0]} has the reward {correct[bad[0]]:g}. veRL also reports it as 'acc', because the reward function "
        "returns a number and not a dict. Only 0 and 1 tell whether an answer is correct. Set "
        "entropy.correctness.threshold, above which a reward means a correct answer (0 for rewards of +-1), or let the "
        "reward return a dict of 'score' and 'acc' (0 or 1)."
    )


def _not_in_unit_interval(correct: np.ndarray) -> str:
    bad = np.flatnonzero(~((correct >= 0) & (correct <= 1)))
    if not len(bad):
        return ""
    return (
        f"row {bad[0]} reports the correctness {correct[bad[0]]}, which is not in [0, 1]. Let the reward return 0 or 1 "
        "under entropy.correctness.reward_key, or set entropy.correctness.threshold; an answer is then correct if its "
        "reward is above the threshold."
    )


def group_rows(
    uid: Sequence[str],
    session: np.ndarray,
    index: np.ndarray,
    correct: np.ndarray | None,
    is_padding: np.ndarray,
) -> Groups:
    """Group rows by prompt, with g(q) the mean correctness of the last rows of q's rollouts.

    A row is one output of a rollout, which veRL calls a session. The correctness of a rollout is that of its last
    output, the row of highest ``index``. Padding rows are copies of real rows and are ignored.

    Args:
        uid: N prompt ids.
        session: ``(N,)`` int, the rollout within the prompt.
        index: ``(N,)`` int, the output within the rollout.
        correct: ``(N,)`` in [0, 1], ignored on padding; None if unknown, and g is then NaN.
        is_padding: ``(N,)`` bool.

    Returns:
        Groups, with the prompts in the order of their uids: the result does not depend on the order of the rows.

    Raises:
        CorrectnessError: the columns differ in length, a correctness is outside [0, 1], or two rows have the same key.

    >>> group_rows(["a", "a", "b"], [0, 1, 0], [0, 0, 0], [1.0, 0.0, 1.0], [False, False, False]).accuracy
    array([0.5, 1. ])
    """
    real = ~np.asarray(is_padding, dtype=bool)
    session, index = np.asarray(session), np.asarray(index)
    known = correct is not None
    correct = np.asarray(correct, dtype=np.float64) if known else np.zeros(len(uid))
    lengths = [len(uid), len(session), len(index), len(correct), len(real)]
    if len(set(lengths)) > 1:
        raise CorrectnessError(f"uid, session, index, correct and is_padding differ in length: {lengths}")
    rows = np.flatnonzero(real)

    prompt, prompts = _number_prompts(uid, rows)
    prompt_of_row = np.full(len(real), -1, dtype=np.int64)
    prompt_of_row[rows] = prompt

    # Sorted, so that each session's rows are adjacent, and sums of fractions do not depend on the order of the rows.
    order = _order_by(prompt, session[rows], index[rows])
    rows, prompt = rows[order], prompt[order]
    next_differs = (prompt[1:] != prompt[:-1]) | (session[rows][1:] != session[rows][:-1])
    _require_distinct(rows, uid, session, index, next_differs)
    ends = np.append(next_differs, True)[: len(rows)]
    last = rows[ends]
    _require_in_unit_interval(last, correct)
    rollout_of_row = np.full(len(real), -1, dtype=np.int64)
    rollout_of_row[rows] = np.cumsum(ends) - ends
    is_last = np.zeros(len(real), dtype=bool)
    is_last[last] = True

    size = np.bincount(prompt[ends], minlength=prompts)
    solved = np.bincount(prompt[ends], weights=correct[last], minlength=prompts)
    accuracy = solved / np.maximum(size, 1) if known else np.full(prompts, np.nan)
    return Groups(accuracy, size, prompt_of_row, rollout_of_row, is_last)


def _number_prompts(uid: Sequence[str], rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Return each row's prompt, numbered in the order of the uids, and the number of prompts."""
    indices: list[int] = rows.tolist()
    uids = uid if len(rows) == len(uid) else [uid[row] for row in indices]
    number_of = {prompt_uid: number for number, prompt_uid in enumerate(sorted(set(uids)))}
    return np.fromiter(map(number_of.__getitem__, uids), dtype=np.int64, count=len(uids)), len(number_of)


def _order_by(*columns: np.ndarray) -> np.ndarray:
    """Return the indices that sort the rows by integer columns; the first column is the primary key.

    Each row is packed into one number, (c_1 * span_2 + c_2) * span_3 + ...; this takes a third of the time of sorting
    column by column.
    """
    if not columns[0].size:
        return np.array([], dtype=np.int64)
    spans = [int(column.max()) - int(column.min()) + 1 for column in columns]
    if math.prod(spans) >= 2**63:
        return np.lexsort(columns[::-1])
    number = np.zeros(len(columns[0]), dtype=np.int64)
    for column, span in zip(columns, spans, strict=True):
        number = number * span + (column - column.min())
    return np.argsort(number)


def _require_distinct(
    rows: np.ndarray, uid: Sequence[str], session: np.ndarray, index: np.ndarray, next_differs: np.ndarray
) -> None:
    twice = np.flatnonzero(~next_differs & (index[rows][1:] == index[rows][:-1]))
    if len(twice):
        row = int(rows[twice[0]])
        raise CorrectnessError(
            f"two rows have the key uid={uid[row]!r} session={session[row]} index={index[row]}. If one of them was "
            "added to fill the batch, mark it as padding."
        )


def _require_in_unit_interval(rows: np.ndarray, correct: np.ndarray) -> None:
    bad = rows[~((correct[rows] >= 0) & (correct[rows] <= 1))]
    if len(bad):
        raise CorrectnessError(f"row {bad[0]} has the correctness {correct[bad[0]]}, which is not in [0, 1].")
