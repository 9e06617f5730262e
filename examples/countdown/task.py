"""Countdown with graded difficulty.

A problem has k one-digit numbers and a target between 0 and 99. An answer is an expression that uses each number once,
with + - *, and reaches the target, evaluated from left to right. k is the level: 2, 3 or 4.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from examples.countdown.reward import evaluate

LEVELS = (2, 3, 4)
OPERATORS = "+-*"
LARGEST_TARGET = 99
LONGEST_PROMPT = 2 * max(LEVELS) + 3
"""Tokens, one per character: k numbers, k-1 commas, `=`, two digits, `:`."""
LONGEST_ANSWER = 2 * max(LEVELS) - 1
"""Tokens without the end of sequence: k numbers and k-1 operators."""


@dataclass(frozen=True)
class CountdownProblem:
    """A problem: its `numbers` in the order of the prompt, and its `target`."""

    numbers: tuple[int, ...]
    target: int

    @property
    def level(self) -> int:
        return len(self.numbers)

    @property
    def canonical(self) -> tuple[tuple[int, ...], int]:
        """Return a form that does not depend on the order of the numbers, to detect equal problems."""
        return tuple(sorted(self.numbers)), self.target

    @property
    def key(self) -> str:
        return f"{','.join(map(str, self.numbers))}={self.target}"

    @property
    def prompt(self) -> str:
        return f"{self.key}:"


def random_expression(rng: np.random.Generator, numbers: Sequence[int]) -> str:
    """Join the numbers in random order by operators uniform on + - *."""
    numbers = rng.permutation(numbers)
    operators = rng.integers(0, len(OPERATORS), size=len(numbers) - 1)
    tail = "".join(f"{OPERATORS[operator]}{number}" for operator, number in zip(operators, numbers[1:], strict=True))
    return f"{numbers[0]}{tail}"


def random_problem(
    rng: np.random.Generator, level: int, held_out: Collection[tuple] = ()
) -> tuple[CountdownProblem, str]:
    """Draw a solvable problem and one answer to it, by rejection.

    numbers ~ uniform on 1..9 and expression ~ random_expression(numbers),
    until 0 <= value <= 99 and the problem is not held out.

    Args:
        held_out: canonical problems that must not be drawn.
    """
    while True:
        numbers = tuple(int(number) for number in rng.integers(1, 10, size=level))
        expression = random_expression(rng, numbers)
        target = evaluate(expression)
        problem = CountdownProblem(numbers, target)
        if 0 <= target <= LARGEST_TARGET and problem.canonical not in held_out:
            return problem, expression


def solve(problem: CountdownProblem) -> str | None:
    """Find the first expression, in depth-first order, that answers the problem; None if there is none."""

    def extend(expression: str, value: int, left: tuple[int, ...]) -> str | None:
        if not left:
            return expression if value == problem.target else None
        for i, number in enumerate(left):
            rest = left[:i] + left[i + 1 :]
            for operator, result in (("+", value + number), ("-", value - number), ("*", value * number)):
                found = extend(f"{expression}{operator}{number}", result, rest)
                if found is not None:
                    return found
        return None

    for i, number in enumerate(problem.numbers):
        found = extend(str(number), number, problem.numbers[:i] + problem.numbers[i + 1 :])
        if found is not None:
            return found
    return None


def held_out_problems(seed: int, per_level: dict[int, int]) -> dict[int, list[CountdownProblem]]:
    """Draw `per_level[k]` different test problems of every level k. They depend only on `seed`."""
    problems = {}
    for level, count in per_level.items():
        rng = np.random.default_rng([seed, level])
        drawn: dict[tuple, CountdownProblem] = {}
        while len(drawn) < count:
            problem, _ = random_problem(rng, level, drawn)
            drawn[problem.canonical] = problem
        problems[level] = list(drawn.values())
    return problems
