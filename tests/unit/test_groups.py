from __future__ import annotations

import numpy as np
import pytest

from verl_aer.rollouts.groups import CorrectnessError, Verdicts, VerdictsSoFar, _order_by, difficulty, group_rows, judge


def rows(*entries: tuple[str, int, int, float, bool]) -> dict:
    """Columns of rows given as (uid, session, index, correct, is_padding)."""
    uid, session, index, correct, is_padding = zip(*entries, strict=True)
    return {
        "uid": list(uid),
        "session": np.array(session),
        "index": np.array(index),
        "correct": np.array(correct, dtype=float),
        "is_padding": np.array(is_padding),
    }


def judged(
    reward: list[float],
    acc: list[float | None],
    *,
    is_reward: bool = False,
    threshold: float | None = None,
    on_missing: str = "wrong",
    so_far: VerdictsSoFar | None = None,
) -> Verdicts:
    filled_in = np.full(len(acc), is_reward)
    return judge(np.array(reward), acc, filled_in, threshold, on_missing, so_far or VerdictsSoFar())


@pytest.mark.guards("T11")
def test_acc_is_used_as_it_is_whatever_the_reward():
    # A length penalty made a correct answer's reward negative and a format bonus a wrong one's positive.
    assert judged([-0.4, 0.3, 0.1], [1.0, 0.0, 0.5]).correct.tolist() == [1.0, 0.0, 0.5]


def test_rewards_of_plus_and_minus_one_need_only_a_threshold():
    assert judged([1.0, -1.0, 1.0], [None] * 3, threshold=0.0).correct.tolist() == [1, 0, 1]


def test_a_reward_equal_to_the_threshold_is_not_correct():
    assert judged([0.5, 0.5000001], [None] * 2, threshold=0.5).correct.tolist() == [0, 1]


def test_shaped_rewards_without_acc_and_threshold_are_refused():
    problem = judged([0.7, -0.2], [None] * 2, on_missing="error").problem
    assert "entropy.correctness.reward_key" in problem
    assert "entropy.correctness.threshold" in problem


@pytest.mark.parametrize("value", [-1.0, 1.5, float("nan")])
def test_an_acc_outside_the_unit_interval_is_refused_with_its_row(value):
    assert judged([1.0, 1.0], [1.0, value]).problem.startswith("row 1 reports the correctness")


def test_a_reward_that_is_not_finite_is_refused_with_its_row():
    assert judged([1.0, 0.0, np.nan], [None] * 3, threshold=0.0).problem.startswith(
        "row 2 has the reward nan, which must be finite"
    )


def test_a_threshold_wins_over_what_is_reported():
    # A reward of 0.3 for the format only, which veRL reports as correctness; and what a reward itself reports.
    assert judged([0.3, 1.0], [0.3, 1.0], is_reward=True, threshold=0.5).correct.tolist() == [0, 1]
    assert judged([0.3, 1.0], [1.0, 0.0], threshold=0.5).correct.tolist() == [0, 1]
    # What is reported is not looked at.
    assert judged([-1.0, 10.0], [None, 10.0], threshold=0.0).correct.tolist() == [0, 1]


@pytest.mark.parametrize("reward", [-1.0, 0.3, 10.0])
def test_a_reward_reported_as_correctness_has_to_be_zero_or_one(reward):
    verdicts = judged([1.0, 0.0, reward], [1.0, 0.0, reward], is_reward=True)
    assert verdicts.correct is None
    assert f"row 2 has the reward {reward:g}. veRL also reports it as 'acc'" in verdicts.problem
    assert "entropy.correctness.threshold" in verdicts.problem
    assert judged([1.0, 0.0], [1.0, 0.0], is_reward=True).correct.tolist() == [1, 0]


def test_partial_credit_that_the_reward_reports_counts_as_its_share():
    assert judged([7.0, 0.25], [0.5, 0.25]).correct.tolist() == [0.5, 0.25]


def test_a_rollout_without_correctness_is_wrong_and_counted():
    verdicts = judged([1.0, 1.0, 0.0], [1.0, None, 0.0])
    assert verdicts.correct.tolist() == [1, 0, 0]
    assert verdicts.unreported.tolist() == [False, True, False]


def test_a_rollout_without_correctness_may_be_an_error():
    problem = judged([1.0, 1.0], [1.0, None], on_missing="error").problem
    assert "row 1" in problem
    assert "entropy.correctness.on_missing=wrong" in problem


def test_a_batch_without_correctness_is_wrong_only_where_the_reward_has_reported_some():
    assert "the correctness of the rollouts is unknown" in judged([1.0], [None]).problem
    so_far = VerdictsSoFar().after(judged([1.0], [1.0]))
    assert judged([1.0], [None], so_far=so_far).correct.tolist() == [0]
    assert "row 0" in judged([1.0], [None], so_far=so_far, on_missing="error").problem
    # A batch that reports nothing does not make it known.
    assert not VerdictsSoFar().after(judged([1.0], [None])).reported


def test_rewards_that_were_no_correctness_once_are_not_when_all_are_one():
    so_far = VerdictsSoFar().after(judged([-1.0, 1.0], [-1.0, 1.0], is_reward=True))
    verdicts = judged([1.0, 1.0], [1.0, 1.0], is_reward=True, so_far=so_far)
    assert verdicts.correct is None
    assert verdicts.problem == so_far.problem


def test_groups_of_unknown_correctness_have_no_accuracy():
    columns = {**rows(("a", 0, 0, 1.0, False), ("a", 1, 0, 1.0, False), ("pad", 0, 0, 0.0, True)), "correct": None}
    groups = group_rows(**columns)
    assert np.isnan(groups.accuracy).tolist() == [True]
    assert groups.size.tolist() == [2]
    assert groups.is_last.tolist() == [True, True, False]


def test_accuracy_is_the_mean_over_the_rollouts_that_are_there():
    # a: 1 of 4; b: a failed rollout left 2 of 3 correct of a group meant to have 4; c: a group of one.
    groups = group_rows(
        **rows(
            *[("a", s, 0, s == 0, False) for s in range(4)],
            *[("b", s, 0, s != 1, False) for s in range(3)],
            ("c", 0, 0, 1.0, False),
        )
    )
    assert groups.accuracy.tolist() == [0.25, 2 / 3, 1.0]
    assert groups.size.tolist() == [4, 3, 1]
    assert groups.prompt_of_row.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]


@pytest.mark.guards("T10")
def test_only_the_last_output_of_a_rollout_counts():
    # Session 0 wrote three outputs, listed out of order; its last one (index 2) is right. Session 1 is wrong.
    groups = group_rows(
        **rows(("a", 0, 2, 1.0, False), ("a", 0, 0, 0.0, False), ("a", 0, 1, 0.0, False), ("a", 1, 0, 0.0, False))
    )
    assert groups.accuracy.tolist() == [0.5]
    assert groups.size.tolist() == [2]
    assert groups.prompt_of_row.tolist() == [0, 0, 0, 0]


def test_a_padding_row_belongs_to_no_prompt_even_with_a_real_ones_uid():
    groups = group_rows(**rows(("a", 0, 0, 0.0, False), ("a", 0, 0, 1.0, True), ("pad7", 0, 0, 1.0, True)))
    assert groups.accuracy.tolist() == [0.0]
    assert groups.size.tolist() == [1]
    assert groups.prompt_of_row.tolist() == [0, -1, -1]


def test_correctness_on_padding_is_never_read():
    groups = group_rows(**rows(("a", 0, 0, 1.0, False), ("a", 0, 0, float("nan"), True)))
    assert groups.accuracy.tolist() == [1.0]


def test_a_batch_of_padding_has_no_prompts():
    groups = group_rows(**rows(("pad1", 0, 0, 1.0, True)))
    assert groups.accuracy.tolist() == []
    assert groups.prompt_of_row.tolist() == [-1]


def test_two_rows_of_one_key_are_refused():
    with pytest.raises(CorrectnessError, match="uid='a' session=1 index=0"):
        group_rows(**rows(("a", 0, 0, 1.0, False), ("a", 1, 0, 1.0, False), ("a", 1, 0, 1.0, False)))


def test_columns_of_unequal_length_are_refused():
    columns = rows(("a", 0, 0, 1.0, False), ("a", 1, 0, 1.0, False))
    columns["correct"] = columns["correct"][:1]
    with pytest.raises(CorrectnessError, match="differ in length"):
        group_rows(**columns)


def test_a_correctness_that_is_not_one_is_refused_with_its_row():
    with pytest.raises(CorrectnessError, match=r"row 1 has the correctness -1\.0"):
        group_rows(**rows(("a", 0, 0, 1.0, False), ("a", 1, 0, -1.0, False)))


@pytest.mark.parametrize("largest", [3, 2**31, 2**62], ids=["small", "large", "too large for one number"])
def test_rows_are_ordered_by_their_columns(largest):
    rng = np.random.default_rng(0)
    columns = [rng.integers(-largest, largest, 200) // 2**shift for shift in (0, 1, 2)]
    order = _order_by(*columns)
    rows = [tuple(column[row] for column in columns) for row in order]
    assert rows == sorted(zip(*columns, strict=True))


def test_difficulty_begin_at_thirds():
    accuracy = np.array([0.0, 0.33, 1 / 3, 0.5, 2 / 3, 1.0])
    assert difficulty(accuracy).tolist() == ["hard", "hard", "medium", "medium", "easy", "easy"]
