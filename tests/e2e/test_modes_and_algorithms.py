"""Real runs of a few steps: the asynchronous modes, DAPO's filtering, a critic."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Training
from verl_aer.cli.main import main as verl_aer

pytestmark = pytest.mark.e2e

RUN_SECONDS = 600
"""Most that a whole run may take: one and a half minutes on two free cores, several times that on busy ones."""


def assert_clean(training: Training, steps: int) -> None:
    """It ended well, made its steps, moved α once a step by what it logged, and left nothing behind."""
    assert training.wait(RUN_SECONDS) == 0, training.log[-3000:]
    assert [step["training/global_step"] for step in training.steps] == list(range(1, steps + 1))
    assert [step["aer/updates"] for step in training.steps] == list(range(1, steps + 1))
    assert verl_aer(["simulate", "--replay", str(training.run.metrics)]) == 0
    assert training.leaves_nothing(20)
    assert "Traceback" not in training.log


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_colocate_async_with_two_ranks_and_filtered_groups(train, reward):
    training = train(
        "colocate",
        "aer",
        reward,
        "trainer.v1.trainer_mode=aer_colocate_async",
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.actor.ppo_epochs=2",
        "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=acc",
        "entropy.target.tau=1.0",
        steps=3,
    )
    assert_clean(training, steps=3)
    assert "[verl_aer] training: FSDP2, world size 2" in training.log
    for step in training.steps:
        # What is left after filtering has an accuracy strictly between 0 and 1.
        assert step["aer/accuracy/zero_frac"] == step["aer/accuracy/one_frac"] == 0
        assert 0 < step["aer/accuracy/mean"] < 1


@pytest.mark.timeout(900)
def test_separate_async_with_local_updates_a_critic_and_skywork(train, reward, inputs):
    training = train(
        "separate",
        "skywork",
        reward,
        "trainer.v1.trainer_mode=aer_separate_async",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.hybrid_engine=false",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "algorithm.adv_estimator=gae",
        f"critic.model.path={inputs.model}",
        "critic.ppo_micro_batch_size_per_gpu=4",
        "entropy.target.entropy=10.0",
        steps=3,
    )
    assert_clean(training, steps=3)
    # The target is out of reach: the coefficient goes up by delta in every step.
    assert [step["aer/alpha"] for step in training.steps] == pytest.approx([0.0, 1e-4, 2e-4])
    for step in training.steps:
        assert step["critic/vf_loss"] > 0
        assert step["actor/aer/policy_gradient"] > 0
