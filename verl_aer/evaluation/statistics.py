"""What n sampled answers to each problem say of a policy.

    pass@k = 1 - C(n - c, k) / C(n, k)             at least one of k answers is right, c of n being so
    avg@n  = c / n                                 which is pass@1
    maj@k  = mean over blocks of k answers of P(the block's most frequent answer is right)

Blocks are the first k answers, the next k, and so on; what does not fill one is left out. Right answers are one answer,
however they are written; wrong ones are one where they are written alike. If several answers are the most frequent, one
of them is drawn: maj@k then counts the share that is right (1/2 for a right and a wrong one with two votes each). An
answer that could not be read has no vote; a block without a vote is wrong.

Intervals are percentile bootstraps over problems: they cover the choice of problems, not the seed of the training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verl_aer.errors import InputError
from verl_aer.evaluation.pass_at_k import BOOTSTRAP_RESAMPLES, Estimate, estimate


@dataclass(frozen=True)
class Answers:
    """The n answers to one problem, in the order in which they were drawn.

    problem: its stable id. source, level: what tables are by. correct: n bools. written: n texts, "" where none could
    be read. tokens: n lengths. nats: n means of -log pi over an answer's tokens.
    """

    problem: str
    source: str
    level: str
    correct: tuple[bool, ...]
    written: tuple[str, ...]
    tokens: tuple[int, ...]
    nats: tuple[float, ...]


def pass_curve(n: int, c: int) -> np.ndarray:
    """pass@k for k = 1 … n, ``(n,)``: 1 - prod_{j < k} (n - c - j) / (n - j).

    >>> pass_curve(n=4, c=1).tolist()
    [0.25, 0.5, 0.75, 1.0]
    """
    if not 0 <= c <= n or n < 1:
        raise ValueError(f"needs n >= 1 answers of which 0 to n are right, got n = {n}, c = {c}")
    j = np.arange(n)
    return 1.0 - np.cumprod(np.maximum(n - c - j, 0) / (n - j))


def majority(correct: Sequence[bool], written: Sequence[str]) -> float:
    """Probability that the most frequent answer is right, ties drawn.

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
        True if is_right else text for is_right, text in zip(correct, written, strict=True) if is_right or text
    )
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return (True in winners) / len(winners)


def maj_at_k(answers: Answers, k: int) -> float:
    """maj@k of one problem.

    Raises:
        InputError: fewer than k answers.
    """
    n = len(answers.correct)
    if not 1 <= k <= n:
        raise InputError(f"maj@{k} needs at least {k} answers, problem {answers.problem} has {n}")
    starts = range(0, n - k + 1, k)
    return float(
        np.mean([majority(answers.correct[start : start + k], answers.written[start : start + k]) for start in starts])
    )


def powers_up_to(n: int) -> list[int]:
    """1, 2, 4, … and n itself.

    >>> powers_up_to(6)
    [1, 2, 4, 6]
    """
    return sorted({2**exponent for exponent in range(n.bit_length()) if 2**exponent <= n} | {n})


def curve_estimates(problems: Sequence[Answers], seed: int = 0) -> list[Estimate]:
    """pass@k for k = 1 … n, each with its interval; one set of resamples for all k.

    Raises:
        InputError: problems with unequal numbers of answers.
    """
    numbers = {len(problem.correct) for problem in problems}
    if len(numbers) != 1:
        raise InputError(f"every problem needs the same number of answers, found {sorted(numbers)}")
    n = numbers.pop()
    curves = np.stack([pass_curve(n, sum(problem.correct)) for problem in problems])
    picks = np.random.default_rng(seed).integers(0, len(curves), size=(BOOTSTRAP_RESAMPLES, len(curves)))
    means = np.stack([curves[pick].mean(axis=0) for pick in picks])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    middle = curves.mean(axis=0)
    return [Estimate(*map(float, ends), len(curves)) for ends in zip(middle, low, high, strict=True)]


def majority_estimates(problems: Sequence[Answers]) -> dict[int, Estimate]:
    """maj@k for k = 2, 4, … n."""
    n = len(problems[0].correct)
    return {k: estimate(np.array([maj_at_k(problem, k) for problem in problems])) for k in powers_up_to(n) if k > 1}


def paired_difference(first: Sequence[Answers], second: Sequence[Answers], k: int) -> Estimate:
    """pass@k of the second minus that of the first, problem by problem: the spread between problems cancels.

    Raises:
        InputError: not the same problems.
    """
    ours, theirs = ({problem.problem: problem for problem in run} for run in (first, second))
    if ours.keys() != theirs.keys():
        differing = sorted(ours.keys() ^ theirs.keys())
        raise InputError(f"not the same problems: {len(differing)} are in one alone, such as {differing[0]}")
    values = [
        pass_curve(len(theirs[name].correct), sum(theirs[name].correct))[k - 1]
        - pass_curve(len(ours[name].correct), sum(ours[name].correct))[k - 1]
        for name in sorted(ours)
    ]
    return estimate(np.array(values))


def is_real(difference: Estimate) -> bool:
    """Whether the interval leaves out 0."""
    return difference.low > 0 or difference.high < 0
