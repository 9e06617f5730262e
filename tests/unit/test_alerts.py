from __future__ import annotations

import pytest

from verl_aer.control.alerts import new_alerts

CALM = {
    "aer/alpha": 0.01,
    "aer/entropy": 0.18,
    "aer/initial_entropy": 0.45,
    "aer/entropy/hard": 0.3,
    "aer/weight/mean": 0.3,
    "aer/error": 0.01,
}


def said(*steps: dict[str, float]) -> list[int]:
    """How many warnings each step brings; a step is CALM but for what is given, None leaves a metric out."""
    active, counts = frozenset(), []
    for step in steps:
        metrics = {name: value for name, value in {**CALM, **step}.items() if value is not None}
        active, messages = new_alerts(metrics, active)
        counts.append(len(messages))
    return counts


def test_a_calm_run_says_nothing():
    assert said({}, {"aer/entropy/hard": 0.45}, {"aer/weight/mean": 0.05}) == [0, 0, 0]


def test_hard_prompts_above_h0_are_said_once_and_again_after_it_has_cleared():
    above, near, below = ({"aer/entropy/hard": entropy} for entropy in (0.46, 0.41, 0.40))
    # Cleared below 0.9 * 0.45 = 0.405, so that an entropy that sits at H0 is not said in every other step.
    assert said(above, above, near, above, below, above) == [1, 0, 0, 0, 0, 1]


def test_few_prompts_are_said_once_and_again_after_it_has_cleared():
    few, near, enough = ({"aer/weight/mean": weight} for weight in (0.04, 0.09, 0.11))
    assert said(few, few, near, few, enough, few) == [1, 0, 0, 0, 0, 1]


def test_few_prompts_are_enough_above_the_target():
    assert said({"aer/weight/mean": 0.0, "aer/error": -0.01}) == [0]


def test_hard_prompts_may_start_above_the_mean():
    assert said({"aer/entropy/hard": 0.6, "aer/alpha": 0.0}, {"aer/entropy/hard": 0.6}) == [0, 1]


@pytest.mark.parametrize("absent", ["aer/entropy/hard", "aer/initial_entropy"])
def test_a_step_that_does_not_show_it_changes_nothing(absent):
    above = {"aer/entropy/hard": 0.5}
    assert said(above, {**above, absent: None}, above) == [1, 0, 0]


def test_the_message_has_the_numbers_and_the_settings():
    _, (hard, few) = new_alerts({**CALM, "aer/entropy/hard": 0.5, "aer/weight/mean": 0.01}, frozenset())
    assert "hard prompts is 0.5 nats per token, above the initial level of 0.45" in hard
    assert "entropy.allocation.entropy_ceiling" in hard
    assert "the mean weight is 0.01" in few
    assert "entropy.allocation.mean_floor" in few
