"""Real runs that do not use this package, with the package installed."""

from __future__ import annotations

import pytest

from tests.e2e.test_modes_and_algorithms import RUN_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_verls_legacy_trainer_trains_as_it_does_without_us(train, reward):
    """Its batches have dense prompts, which an engine for the v1 trainers' batches cannot read."""
    training = train(
        "legacy",
        None,
        reward,
        "trainer.use_v1=false",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=naive",
        # What `hardware=cpu` has instead is for the v1 trainers.
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
        "reward.num_workers=1",
        steps=3,
    )
    assert training.wait(RUN_SECONDS) == 0, training.log[-3000:]
    assert [step["training/global_step"] for step in training.steps] == [1, 2, 3]
    assert all(step["actor/entropy"] > 0 for step in training.steps)
    assert not [name for step in training.steps for name in step if "aer" in name.split("/")]
    assert "[verl_aer]" not in training.log
    assert training.leaves_nothing(20)
