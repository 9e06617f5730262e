"""Countdown's reward on right, wrong and hostile responses."""

from __future__ import annotations

import pytest

from examples.countdown.reward import compute_score, is_correct

KEY = "3,5,7=56"


def test_score_and_acc_of_a_right_and_a_wrong_answer():
    # (3 + 5) * 7 = 56; (3 * 5) + 7 = 22.
    assert compute_score("countdown_k3", "3+5*7", KEY, {"level": 3}) == {
        "score": 1.0,
        "acc": 1.0,
        "level": 3,
    }
    assert compute_score("countdown_k3", "3*5+7", KEY, {"level": 3}) == {
        "score": 0.0,
        "acc": 0.0,
        "level": 3,
    }


@pytest.mark.parametrize(
    "response",
    [
        "8*7",  # reaches 56 with a number that is not given
        "3+5*7*1",  # a number too many
        "7*8",
        "5+3",  # a number missing
        "3+5*7+7-7",  # a number more than once
    ],
)
def test_the_numbers_must_be_used_once_each(response):
    assert not is_correct(response, KEY)


@pytest.mark.parametrize(
    "response",
    [
        "",
        " 3+5*7",
        "3+5*7\n",
        "3+5*7=56",
        "+3+5*7",
        "3+5*",
        "35*7",
        "3**5*7",
        "3+(5)*7",
        "３+５*７",  # full-width digits, which int() would accept
        "٣+٥*٧",  # Arabic-Indic digits
        "3+5*7\x00",
        "\ud800",
        "__import__('os').abort()",
        "9**9**9**9",
        "3+5*7" + "+0" * 10_000_000,
        "(" * 1_000_000,
        None,
        56,
        ["3", "+", "5"],
        b"3+5*7",
    ],
    ids=lambda response: repr(response)[:24],
)
@pytest.mark.timeout(1)
def test_hostile_responses_score_zero(response):
    assert compute_score("countdown_k3", response, KEY) == {
        "score": 0.0,
        "acc": 0.0,
        "level": 3,
    }


@pytest.mark.parametrize("key", ["", "3,5,7", "3,5,7=", "3;5=8", "3,5=1000", None, 8])
def test_broken_ground_truth_is_an_error_that_says_what_to_do(key):
    with pytest.raises(ValueError, match=r"must look like '3,5,7=42'.*prepare the data again"):
        compute_score("countdown_k3", "3+5*7", key)
