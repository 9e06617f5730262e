"""A real run with only Skywork's bonus: all rewards are equal, so all advantages are zero."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Inputs
from tests.e2e.test_modes_and_algorithms import assert_clean

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS = 5
CONSTANT = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": 0.0, "acc": 0.0}
"""


@pytest.fixture
def constant_reward(inputs: Inputs, tmp_path) -> str:
    path = tmp_path / "constant_reward.py"
    path.write_text(CONSTANT)
    return f"reward.custom_reward_function.path={path}"


@pytest.mark.timeout(900)
def test_the_entropy_rises_under_the_bonus_alone(train, constant_reward):
    training = train(
        "skywork",
        "skywork",
        constant_reward,
        # One mini-batch a step, as in Skywork's scripts: on-policy.
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        # An untrained policy is nearly uniform; sharpened it has half of the entropy that it can have.
        "actor_rollout_ref.rollout.temperature=0.2",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "entropy.target.entropy=10.0",
        "entropy.controller.step_size=0.05",
        "entropy.controller.alpha_init=0.05",
        "entropy.controller.alpha_max=1.0",
        steps=STEPS,
    )
    assert_clean(training, steps=STEPS)
    steps = training.steps
    assert [step["aer/alpha"] for step in steps] == pytest.approx([0.05 * step for step in range(1, STEPS + 1)])
    assert all(step["actor/aer/policy_gradient"] == 0 for step in steps)
    assert all(step["actor/aer/entropy_gradient"] > 0 for step in steps)
    # Measured is -log pi of the sampled tokens, which scatters; pushed is the entropy of the whole distribution.
    full = [step["actor/entropy"] for step in steps]
    assert full == sorted(full)
    assert full[-1] > full[0] + 0.2
    assert steps[-1]["aer/entropy"] > steps[0]["aer/entropy"] + 0.2
    assert steps[0]["aer/entropy"] != pytest.approx(full[0], rel=1e-6)
    # Full entropy is what the bonus is made of: alpha times its mean.
    assert steps[0]["actor/aer/entropy_term"] == pytest.approx(0.05 * full[0], rel=1e-2)
    assert "expected gradient" not in training.log
