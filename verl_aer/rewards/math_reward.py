"""Reward of a mathematical answer: 1 if it equals the ground truth, else 0. For veRL's `custom_reward_function`.

    reward.custom_reward_function.path=pkg://verl_aer.rewards.math_reward
    +reward.custom_reward_function.reward_kwargs.time_limit_s=5

Plain text and numbers are compared directly (`exact`), after the answer is extracted from the response (`answer_text`).
Everything else is checked by math-verify in a subprocess with kernel-enforced time and memory limits (`verifier`,
`symbolic`). These rules apply:

        extraction     the last `\\boxed{}`, else `####`, else "final answer is", else "answer is", else a response of
        one
                       short line. Only the end of a long response and only the text after `</think>` is searched
        units          are dropped, never compared: `5 \\text{ cm}`, `5 m` and `5` are equal. So are degrees and
            currencies; 90 degrees and pi/2 differ
        percent        50 % equals 50 and 0.5; without a sign, 50 and 0.5 differ
        decimals       a decimal with at least six decimals may be rounded: 0.333333 equals 1/3, 0.33 does not
        thousands      a comma before three digits groups them: `1,234` is a number, `1, 234` and `(1,234)` are two. A
                       decimal comma is not supported
        several        `1, 2` equals `2, 1`, `\\{2,1\\}` and `x=1 or x=2`: all answers are needed and no others. `(1,2)`
        is
                       ordered, and equals `1, 2` but not `\\{1,2\\}`
        intervals      are compared by their ends and brackets; `1<x\\le 2` equals `(1,2]`
        equations      equivalent equations are equal; `x=5` equals `5`, and `y=2x+1` equals `2x+1`
        ratios         `3:4` equals `3/4`
        bases          `204_5` equals `204` if the ground truth has the base; other digits or bases differ
        choices        a ground truth `A` to `J` equals that letter in either case, `(A)`, `A.` or `(A)` and more text
        words          equal letters, in either case: `\\text{Monday}` and `monday`

    A response of another type, without an answer, or past a limit scores 0, and `reason` gives the cause. The same
    holds for an unreadable ground truth, because an exception would end the training. Data preparation finds unreadable
    ground truths first with `check_ground_truth`.
"""

from __future__ import annotations

from typing import TypedDict

from verl_aer.extras import require_extra
from verl_aer.rewards import exact, replies
from verl_aer.rewards.answer_text import find_answer, normalize
from verl_aer.rewards.verifier import Verifier

LONGEST_ANSWER = 1000
"""Maximum characters of an answer or a ground truth."""

LONGEST_PRED = 200
"""Maximum characters of `pred`, which veRL keeps for each response."""

TIME_LIMIT_S = 5.0
MEMORY_LIMIT_MB = 2048
"""Default limits of one verification. Memory is in addition to the verifier's at its start."""

# Fail on import, not at the first formula: a run whose formulas all score 0 would look like a bad policy.
require_extra("math_verify", "the math reward")

_VERIFIER = Verifier()


class MathScore(TypedDict):
    """`reason` is the cause of a score of 0, else empty. All keys are present for every response."""

    score: float
    acc: float
    pred: str
    reason: str


def _score(reason: str, answer: str) -> MathScore:
    # veRL writes `pred` to UTF-8 files, which cannot hold lone surrogates.
    pred = answer[:LONGEST_PRED].encode("utf-8", "replace").decode("utf-8")
    correct = float(not reason)
    return {"score": correct, "acc": correct, "pred": pred, "reason": reason}


def _truth_text(truth: object) -> tuple[str, str]:
    """Return the normalized ground truth, and the cause if it is unreadable."""
    if not isinstance(truth, str):
        return "", f"it is no text but {type(truth).__name__}"
    marked = "\\boxed" in truth or "\\fbox" in truth or "####" in truth
    text = find_answer(truth) if marked else truth.strip()
    if not text:
        return "", "it is empty"
    if len(text) > LONGEST_ANSWER:
        return "", f"it is longer than {LONGEST_ANSWER} characters"
    normal = normalize(text)
    return normal, "" if normal else "nothing is left without its units and signs"


def _reason(truth: str, answer: str, time_limit_s: float, memory_limit_mb: int) -> str:
    """Return why `answer` is wrong; '' if it is right. Both are normalized."""
    verdict = exact.decide(truth, answer)
    if verdict is not None:
        return "" if verdict else replies.NOT_EQUAL
    reply = _VERIFIER.ask(truth, answer, time_limit_s, memory_limit_mb * 2**20)
    if reply == replies.EQUAL:
        return ""
    return "ground truth unreadable: not a formula" if reply == replies.TRUTH_UNREADABLE else reply


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    memory_limit_mb: int = MEMORY_LIMIT_MB,
    **kwargs: object,
) -> MathScore:
    """Compute veRL's reward: 1 for a right answer, else 0.

    Args:
        data_source: ignored; the rule is the same for every data set.
        solution_str: decoded response without special tokens.
        ground_truth: the answer, or a solution with its answer in `\\boxed{}` or after `####`.
        time_limit_s: maximum seconds of a verification.
        memory_limit_mb: maximum MiB of a verification, in addition to the verifier's memory at its start.

    Returns:
        `score`, the reward; `acc`, the correctness for the group accuracy; `pred`, the beginning of the answer, which
        is the answer's vote in veRL's majority votes; and `reason`.

    >>> compute_score("math", "So it is \\\\boxed{\\\\frac12}.", "0.5")
    {'score': 1.0, 'acc': 1.0, 'pred': '\\\\frac12', 'reason': ''}
    """
    truth, fault = _truth_text(ground_truth)
    if fault:
        return _score(f"ground truth unreadable: {fault}", "")
    if not isinstance(solution_str, str):
        return _score("no text", "")
    answer = find_answer(solution_str)
    if not answer:
        return _score("no answer", "")
    if len(answer) > LONGEST_ANSWER:
        return _score("answer too long", answer)
    normal = normalize(answer)
    if not normal:
        return _score("no answer", answer)
    return _score(_reason(truth, normal, time_limit_s, memory_limit_mb), answer)


def check_ground_truth(text: object, time_limit_s: float = TIME_LIMIT_S) -> str | None:
    """Check a ground truth. Returns None if answers can be compared with it, else the cause.

    >>> check_ground_truth("3,000 dollars")
    >>> check_ground_truth("")
    'it is empty'
    """
    truth, fault = _truth_text(text)
    if fault:
        return fault
    if exact.is_plain(truth):
        return None
    reply = _VERIFIER.ask(truth, None, time_limit_s, MEMORY_LIMIT_MB * 2**20)
    if reply == replies.READABLE:
        return None
    return "not a formula" if reply == replies.TRUTH_UNREADABLE else reply
