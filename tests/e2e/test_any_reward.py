"""Real runs of a few steps with rewards that say nothing, or not at once, of which answers are correct."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Inputs, Training
from tests.e2e.test_modes_and_algorithms import assert_clean

pytestmark = pytest.mark.e2e

PLUS_AND_MINUS_ONE = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0 if len(solution_str) % 2 else -1.0
"""

SOMETIMES_WITHOUT_ACC = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    '''One answer in three is not judged.'''
    right = float(len(solution_str) % 2)
    return {"score": right, "acc": None if len(solution_str) % 3 == 0 else right}
"""


@pytest.fixture
def returning(inputs: Inputs) -> Callable[[str, str], str]:
    """The setting of a reward function: its file's name and its text."""

    def write(name: str, text: str) -> str:
        path = inputs.data / f"{name}.py"
        path.write_text(text)
        return f"reward.custom_reward_function.path={path}"

    return write


def accuracies(training: Training) -> list[dict[str, float]]:
    return [{name: step[name] for name in step if name.startswith("aer/accuracy/")} for step in training.steps]


@pytest.mark.timeout(900)
def test_fixed_with_a_reward_of_plus_and_minus_one(train, returning):
    training = train("number", "fixed", returning("number", PLUS_AND_MINUS_ONE), steps=2)
    assert_clean(training, steps=2)
    # Nothing says which answers are correct, and this method does not need it.
    assert accuracies(training) == [{}, {}]
    assert all(step["aer/weight/mean"] == 1 and step["aer/entropy"] > 0 for step in training.steps)
    assert all(-1 <= step["critic/score/mean"] <= 1 for step in training.steps)
    assert "left out from now on (fixed needs none)" in training.log


@pytest.mark.timeout(900)
def test_aer_with_a_threshold_on_the_same_reward(train, returning):
    reward = returning("number", PLUS_AND_MINUS_ONE)
    training = train("threshold", "aer", reward, "entropy.correctness.threshold=0", steps=2)
    assert_clean(training, steps=2)
    for step in training.steps:
        # A share p of answers with 1, the others with -1.
        assert step["aer/accuracy/mean"] == pytest.approx((1 + step["critic/score/mean"]) / 2)
        assert step["aer/accuracy/unreported"] == 0


@pytest.mark.timeout(900)
def test_aer_with_a_reward_that_does_not_judge_every_answer(train, returning):
    training = train("unjudged", "aer", returning("unjudged", SOMETIMES_WITHOUT_ACC), steps=2)
    assert_clean(training, steps=2)
    unreported = [step["aer/accuracy/unreported"] for step in training.steps]
    assert all(0 < rollouts < 16 for rollouts in unreported)
    assert training.log.count("they count as wrong") == 1
