"""The agent loop of `hardware=cpu` samples the same as veRL's own, on vLLM."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import START_SECONDS

pytestmark = pytest.mark.e2e

VERLS_OWN = ["actor_rollout_ref.rollout.agent.agent_loop_manager_class=null", "reward.num_workers=1"]
GREEDY = [
    # A sample would depend on which requests the engine finds together, and in which order.
    "actor_rollout_ref.rollout.top_k=1",
    "data.train_batch_size=32",
    "actor_rollout_ref.rollout.n=2",
]


def rollouts(training):
    """Prompt, answer and score of each rollout of the first step."""
    lines = (training.run.folder / "rollouts" / "1.jsonl").read_text().splitlines()
    return sorted((row["input"], row["output"], row["score"]) for row in map(json.loads, lines))


@pytest.mark.timeout(1200)
def test_the_same_prompts_give_the_same_tokens(train, reward, tmp_path):
    found = {}
    for name, overrides in {"quick": [], "verl": VERLS_OWN}.items():
        folder = f"trainer.rollout_data_dir={tmp_path}/{name}/rollouts"
        training = train(name, "none", reward, folder, *GREEDY, *overrides, steps=1)
        assert training.wait(START_SECONDS) == 0, training.log[-3000:]
        found[name] = rollouts(training)
    assert len(found["quick"]) == 64
    assert len({output for _, output, _ in found["quick"]}) > 4
    assert found["quick"] == found["verl"]
