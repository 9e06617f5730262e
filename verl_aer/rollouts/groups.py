"""Group accuracy: how many of a prompt's rollouts are correct.

    g(q) = (1/G) * sum_i c_i        c_i in [0, 1], G the rollouts of q that are really there

Correctness is not reward: a reward may be +-1, carry length penalties or format bonuses, and then its mean
says nothing about how often the policy solves the prompt.
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
"""The buckets of prompts, by group accuracy. They do not depend on rho, so that runs can be compared."""

EASY_FROM, MEDIUM_FROM = 2 / 3, 1 / 3
"""Bounds of the buckets: those of ARES (arXiv 2510.08457)."""


def difficulty(accuracy: np.ndarray) -> np.ndarray:
    """Name the bucket of each prompt: easy from 2/3 on, medium from 1/3 on, else hard.

    >>> difficulty(np.array([1.0, 2 / 3, 0.5, 1 / 3, 0.25])).tolist()
    ['easy', 'easy', 'medium', 'medium', 'hard']
    """
    return np.where(accuracy >= EASY_FROM, "easy", np.where(accuracy >= MEDIUM_FROM, "medium", "hard"))


class CorrectnessError(VerlAerError, ValueError):
    """Nothing says, or something contradicts, which rollouts are correct."""


class CorrectnessConfig(Settings):
    """Which rollouts are correct: reward > ``threshold`` where that is set, else the reward's own ``reward_key``."""

    reward_key: str = "acc"
    """Name of the correctness, a value in [0, 1], in what the reward function returns."""
    threshold: float | None = None
    """A rollout is correct if its reward is above this, whatever else is returned; null takes the key."""
    on_missing: Literal["error", "wrong"] = "wrong"
    """What happens with a rollout without the key once others had it: ``error``, or it counts as ``wrong``, with a
    warning and a count."""


@dataclass(frozen=True)
class Groups:
    """The prompts of one step.

    accuracy: ``(P,)`` float64 in [0, 1], mean correctness of the prompt's rollouts; NaN where nothing says which are
    correct, which only methods see that do not use it. size: ``(P,)`` int64, rollouts of the prompt. prompt_of_row:
    ``(N,)`` int64, the prompt of each row, -1 on padding.

    From ``group_rows``: rollout_of_row: ``(N,)`` int64, the rollout of each row, -1 on padding. is_last: ``(N,)`` bool,
    the row that its rollout is judged by; False on padding.

    With the question memory (``verl_aer.rollouts.question_memory``); None where no part of the method uses it:
    history: ``(P,)`` float64, Acc_h of the prompt's question after this step. history_mean: Acc_h over all questions.
    shortest: ``(P,)`` float64, L_x in tokens, NaN where no correct response is known.

    Where weights are computed: entropy: ``(P,)`` float64, mean entropy of each prompt's rollouts as the control
    measures it, nats per token, NaN for a prompt without response tokens; None where the driver does not know it
    (bypass mode). initial_entropy: H0, nats per token, None while it is not known and where the target is not anchored.
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
    """Which of N trajectories are correct, as far as anything says so.

    correct: ``(N,)`` float64 in [0, 1]; None where nothing valid says so. unreported: ``(N,)`` bool, trajectories
    that count as wrong because the reward reported nothing for them. problem: why ``correct`` is None, else empty.
    """

    correct: np.ndarray | None
    unreported: np.ndarray
    problem: str = ""


@dataclass(frozen=True)
class VerdictsSoFar:
    """What the batches of a run have shown of their correctness.

    reported: whether the reward has reported any. unreported: whether a rollout has counted as wrong because the
    reward did not. problem: the first reason why correctness could not be told, else empty. It holds for the rest of
    the run: a batch whose rewards of +-1 all happen to be 1 does not turn them into correctness.
    """

    reported: bool = False
    unreported: bool = False
    problem: str = ""

    def after(self, verdicts: Verdicts) -> VerdictsSoFar:
        """What is known after one more batch."""
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
    """c_i = 1[reward_i > threshold] where a threshold is set, else acc_i.

    Args:
        reward: ``(N,)``, each trajectory's reward before any KL penalty; only read with a threshold.
        acc: what the reward reports of N trajectories, in [0, 1]; None for one of which it reports nothing.
        acc_is_reward: ``(N,)`` bool, where veRL has reported the reward itself as ``acc``: it has to be 0 or 1.
        threshold: a trajectory is correct when its reward is above it, whatever ``acc`` says; None if none is
            configured.
        on_missing: ``error`` or ``wrong``. ``wrong`` is c_i = 0 where the reward reports nothing, once it has reported
            something in this run.
        so_far: what the batches before have shown.

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
        return Verdicts(None, nowhere, _NOTHING_SAYS)
    if unreported.any() and on_missing == "error":
        return Verdicts(None, nowhere, _only_some(np.flatnonzero(unreported)[0]))
    correct = np.array([0.0 if value is None else value for value in acc], dtype=np.float64)
    return _verdicts(correct, unreported, _not_binary(correct, acc_is_reward) or _not_in_unit_interval(correct))


_NOTHING_SAYS = (
    "nothing says which rollouts are correct: the reward reports no number under entropy.correctness.reward_key, and "
    "entropy.correctness.threshold is not set. Let the reward return that key (0 or 1), or set the threshold above "
    "which a reward means a correct answer (0 for rewards of +-1)."
)


def _verdicts(correct: np.ndarray, unreported: np.ndarray, problem: str) -> Verdicts:
    return Verdicts(None, np.zeros_like(unreported), problem) if problem else Verdicts(correct, unreported)


def _only_some(row: int) -> str:
    return (
        f"the reward reports a number under entropy.correctness.reward_key for some rollouts only (not for row {row}). "
        "Let it return that key for every rollout, a wrong or empty answer included, or count such rollouts as wrong "
        "with entropy.correctness.on_missing=wrong."
    )


def _not_finite(reward: np.ndarray) -> str:
    bad = np.flatnonzero(~np.isfinite(reward))
    return f"row {bad[0]} has reward {reward[bad[0]]}; a correct answer cannot be told from it." if len(bad) else ""


def _not_binary(correct: np.ndarray, acc_is_reward: np.ndarray) -> str:
    bad = np.flatnonzero(acc_is_reward & (correct != 0) & (correct != 1))
    if not len(bad):
        return ""
    return (
        f"row {bad[0]} has the reward {correct[bad[0]]:g}, which veRL reports as its 'acc' too, because the reward "
        "function returns one number and no dict; a number other than 0 and 1 does not say whether an answer is "
        "correct. Set entropy.correctness.threshold, above which a reward means a correct answer (0 for rewards of "
        "+-1), or let the reward return a dict of 'score' and 'acc' (0 or 1)."
    )


def _not_in_unit_interval(correct: np.ndarray) -> str:
    bad = np.flatnonzero(~((correct >= 0) & (correct <= 1)))
    if not len(bad):
        return ""
    return (
        f"row {bad[0]} reports correctness {correct[bad[0]]}, which is not in [0, 1]. Let the reward return 0 or 1 "
        "under entropy.correctness.reward_key, or set entropy.correctness.threshold: an answer is then correct when "
        "its reward is above it, whatever the reward reports."
    )


def group_rows(
    uid: Sequence[str],
    session: np.ndarray,
    index: np.ndarray,
    correct: np.ndarray | None,
    is_padding: np.ndarray,
) -> Groups:
    """g(q) = mean over the sessions of q of the correctness of each session's last row.

    A row is one output of a rollout (a *session*); a rollout of several outputs is judged by its last one,
    the row of highest ``index``. Padding rows are copies of real ones and count nowhere.

    Args:
        uid: N prompt ids.
        session: ``(N,)`` int, the rollout within the prompt.
        index: ``(N,)`` int, the output within the rollout.
        correct: ``(N,)`` in [0, 1], ignored on padding; None where nothing says it, and g is NaN.
        is_padding: ``(N,)`` bool.

    Returns:
        Groups, prompts in the order of their uids: nothing depends on the order of the rows.

    Raises:
        CorrectnessError: columns of unequal length, a correctness outside [0, 1], or two rows of one key.

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

    # Sorted, so that each session's rows are neighbors, and sums of fractions are the same for any order of
    # rows.
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
    """Each row's prompt, numbered in the order of the uids, and how many prompts there are."""
    uids = uid if len(rows) == len(uid) else [uid[row] for row in rows.tolist()]
    number_of = {prompt_uid: number for number, prompt_uid in enumerate(sorted(set(uids)))}
    return np.fromiter(map(number_of.__getitem__, uids), dtype=np.int64, count=len(uids)), len(number_of)


def _order_by(*columns: np.ndarray) -> np.ndarray:
    """Indices that sort the rows by whole-number columns, the first one foremost.

    As one number a row, (c_1 * span_2 + c_2) * span_3 + ..., they are sorted in a third of the time that sorting
    column by column takes.
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
        row = rows[twice[0]]
        raise CorrectnessError(
            f"two rows have the key uid={uid[row]!r} session={session[row]} index={index[row]}; if one of "
            "them was added to fill the batch, it must be marked as padding."
        )


def _require_in_unit_interval(rows: np.ndarray, correct: np.ndarray) -> None:
    bad = rows[~((correct[rows] >= 0) & (correct[rows] <= 1))]
    if len(bad):
        raise CorrectnessError(f"row {bad[0]} has correctness {correct[bad[0]]}, which is not in [0, 1].")
