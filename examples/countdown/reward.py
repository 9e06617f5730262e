"""Countdown's verifier and veRL's `custom_reward_function`.

veRL's reward workers load this file by its path, so it imports nothing but the standard library.
"""

from __future__ import annotations

import re

LONGEST_RESPONSE = 64
"""Characters. A right answer has at most nine; anything far longer is wrong without being read."""

_EXPRESSION = re.compile(r"[1-9](?:[+*-][1-9])*")
_KEY = re.compile(r"[1-9](?:,[1-9])*=[0-9]{1,2}")


def evaluate(expression: str) -> int:
    """Value of `d op d op d …` taken strictly from left to right, so 2+3*4 is 20.

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
    """`"3,5,7=42"` -> ((3, 5, 7), 42).

    Raises:
        ValueError: the text is not a problem's key. That is an error of the data, never of the policy.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"ground truth must look like '3,5,7=42', got {key!r}; prepare the data again")
    numbers, target = key.split("=")
    return tuple(int(number) for number in numbers.split(",")), int(target)


def is_correct(response: str, key: str) -> bool:
    """correct = (numbers of the response are the problem's, each used once) and (value == target).

    Any `response` is accepted, whatever its content or type; nothing in it is executed.
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
    """Reward 1 for a right answer, else 0, in the form veRL's reward loop expects.

    Args:
        data_source: ignored; one rule serves every level.
        solution_str: the decoded response without special tokens.
        ground_truth: the problem's key, for example `"3,5,7=42"`.

    Returns:
        `score`, the reward, `acc`, the correctness that group accuracy is computed from, and `level`, by which
        the answers to held-out prompts are counted.
    """
    correct = float(is_correct(solution_str, ground_truth))
    numbers, _ = parse_key(ground_truth)
    return {"score": correct, "acc": correct, "level": len(numbers)}
