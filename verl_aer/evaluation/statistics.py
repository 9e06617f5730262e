"""Statistics of n sampled answers to each problem.

    pass@k = 1 - C(n - c, k) / C(n, k)             at least one of k answers is right, if c of n are
    avg@n  = c / n                                 equal to pass@1
    maj@k  = mean over blocks of k answers of P(the block's most frequent answer is right)

pass@k is the unbiased estimate of Chen et al. 2021 (arXiv 2107.03374, equation 1).

Blocks are the first k answers, the next k, and so on; answers that do not fill a block are ignored. All correct answers
count as the same vote; incorrect answers are grouped by their exact text. If several answers are the most frequent,
maj@k counts the share of correct ones among them: 1/2 for a correct and an incorrect answer with two votes each. An
unreadable answer has no vote, and a block without votes is wrong.

Intervals are percentile bootstraps over problems. They cover the choice of problems, but not the seeds of sampling and
training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from verl_aer.errors import InputError

BOOTSTRAP_RESAMPLES = 2000
"""Resamples of a bootstrap. The ends of a 95 % interval then vary by about 2 % of its width between seeds."""


@dataclass(frozen=True)
class Answers:
    """The n answers to one problem, in the order of sampling.

    problem: stable id. source, level: groups of the tables. correct: n bools. texts: n extracted answers, "" if
    unreadable. tokens: n lengths. mean_nll: n means of -log pi over an answer's tokens, in nats. veRL's validation
    dumps have neither tokens nor mean_nll: both are empty.
    """

    problem: str
    source: str
    level: str
    correct: tuple[bool, ...]
    texts: tuple[str, ...]
    tokens: tuple[int, ...] = ()
    mean_nll: tuple[float, ...] = ()


class Estimate(NamedTuple):
    """A mean over problems, or a difference of two means, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def pass_at_k(n: int, c: int) -> np.ndarray:
    """Estimate pass@k for k = 1 … n from n answers of which c are right, ``(n,)``.

        pass@k = 1 - prod_{j < k} (n - c - j) / (n - j)

    The product form has no large factorials.

    >>> pass_at_k(n=4, c=1).tolist()
    [0.25, 0.5, 0.75, 1.0]
    """
    if not 0 <= c <= n or n < 1:
        raise ValueError(f"needs n >= 1 answers of which 0 to n are right, got n = {n}, c = {c}")
    j = np.arange(n)
    return 1.0 - np.cumprod(np.maximum(n - c - j, 0) / (n - j))


def pass_at_k_of(problems: Sequence[Answers], ks: Sequence[int]) -> np.ndarray:
    """Estimate pass@k of each problem for each of `ks`, ``(problems, len(ks))``."""
    places = np.array(ks) - 1
    return np.stack([pass_at_k(len(problem.correct), sum(problem.correct))[places] for problem in problems])


def fewest_answers(problems: Sequence[Answers]) -> int:
    """Return the number of answers that every problem has."""
    return min(len(problem.correct) for problem in problems)


def majority(correct: Sequence[bool], texts: Sequence[str]) -> float:
    """Compute the probability that a random one of the most frequent answers is right.

    >>> majority([True, True, False], ["4", "4.0", "5"])
    1.0
    >>> majority([True, False], ["4", "5"])
    0.5
    >>> majority([False, False, True], ["", "", "4"])
    1.0
    >>> majority([False], [""])
    0.0
    """
    votes = Counter(
        True if is_right else text for is_right, text in zip(correct, texts, strict=True) if is_right or text
    )
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return (True in winners) / len(winners)


def maj_at_k(answers: Answers, k: int) -> float:
    """Estimate maj@k of one problem.

    Raises:
        InputError: fewer than k answers.
    """
    n = len(answers.correct)
    if not 1 <= k <= n:
        raise InputError(f"maj@{k} needs at least {k} answers, problem {answers.problem} has {n}")
    starts = range(0, n - k + 1, k)
    return float(
        np.mean([majority(answers.correct[start : start + k], answers.texts[start : start + k]) for start in starts])
    )


def powers_up_to(n: int) -> list[int]:
    """List 1, 2, 4, … and n itself.

    >>> powers_up_to(6)
    [1, 2, 4, 6]
    """
    return sorted({2**exponent for exponent in range(n.bit_length()) if 2**exponent <= n} | {n})


def bootstrap(values: np.ndarray, seed: int = 0) -> list[Estimate]:
    """Estimate the mean over problems of each column of `values` (problems, K), with its 95 % percentile interval.

    One set of resamples of the problems serves all K columns.
    """
    problems = len(values)
    picks = np.random.default_rng(seed).integers(0, problems, size=(BOOTSTRAP_RESAMPLES, problems))
    # Multiplying the counts of each problem in each resample by the values gives the resamples' means of all columns,
    # without an array of (resamples, problems, K).
    picks += problems * np.arange(BOOTSTRAP_RESAMPLES)[:, None]
    counts = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape)
    low, high = np.quantile(counts @ values / problems, [0.025, 0.975], axis=0)
    return [Estimate(*map(float, column)) for column in zip(values.mean(axis=0), low, high, strict=True)]


def is_significant(difference: Estimate) -> bool:
    """Check whether the 95 % interval of a difference excludes 0."""
    return difference.low > 0 or difference.high < 0
