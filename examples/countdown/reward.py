"""Countdown's verifier and veRL's `custom_reward_function`.

veRL's reward workers load this file by its path, so it imports only the standard library.
"""

from __future__ import annotations

import re

LONGEST_RESPONSE = 64
"""Characters. A right answer has at most nine, so a much longer response is wrong without being parsed."""

_EXPRESSION = re.compile(r"[1-9](?:[+*-][1-9])*")
_KEY = re.compile(r"[1-9](?:,[1-9])*=[0-9]{1,2}")


def evaluate(expression: str) -> int:
    """Evaluate `d op d op d …` strictly from left to right, so 2+3*4 is 20.

    Args:
        expression: one-digit numbers 1 to 9 joined by `+`, `-` or `*`, no spaces.

    Raises:
        ValueError: the text has another form.
    """
    if not _EXPRESSION.fullmatch(expression):
        raise ValueError(f"not an expression of one-digit numbers joined by + - *: {expression!r}")
    value = int(expression[0])
    for operator, digit in zip(expression[1::2], expression[2::2], strict=True):
        number = int(digit)
        if operator == "+":
            value += number
        elif operator == "-":
            value -= number
        else:
            value *= number
    return value


def parse_key(key: str) -> tuple[tuple[int, ...], int]:
    """Parse a problem's key: `"3,5,7=42"` -> ((3, 5, 7), 42).

    Raises:
        ValueError: the text is not a problem's key. The data are wrong, not the policy.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"ground truth must look like '3,5,7=42', got {key!r}; prepare the data again")
    numbers, target = key.split("=")
    return tuple(int(number) for number in numbers.split(",")), int(target)


def is_correct(response: str, key: str) -> bool:
    """Check a response: it must use each of the problem's numbers once, and its value must be the target.

    Any `response` is accepted, with any content and type. Nothing in it is executed.
    """
    numbers, target = parse_key(key)
    if not isinstance(response, str) or len(response) > LONGEST_RESPONSE:
        return False
    if not _EXPRESSION.fullmatch(response):
        return False
    used = sorted(int(digit) for digit in response[::2])
    return used == sorted(numbers) and evaluate(response) == target


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    **kwargs: object,
) -> dict[str, float]:
    """Compute veRL's reward: 1 for a right answer, else 0.

    Args:
        data_source: ignored; the rule is the same for every level.
        solution_str: decoded response without special tokens.
        ground_truth: key of the problem, for example `"3,5,7=42"`.

    Returns:
        `score`, the reward; `acc`, the correctness for the group accuracy; and `level`, the group of the answer in
        comparisons of validation dumps.
    """
    correct = float(is_correct(solution_str, ground_truth))
    numbers, _ = parse_key(ground_truth)
    return {"score": correct, "acc": correct, "level": len(numbers)}
