"""The entropy control with every advantage estimator and policy loss that veRL registers.

The names come from veRL's registries, so that the tests include those of later versions.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.workers.config.actor import PolicyLossConfig
from verl.workers.utils.losses import ppo_loss

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from tests.integration.test_loss_equals_verl import COEFFICIENT, LENGTHS, actor_config, make_rows, train
from tests.integration.test_trainer_mixin import MODES, composed
from tools.support_table import PAGE, listed
from verl_aer.integration.loss import entropy_loss
from verl_aer.integration.preflight import UNSUPPORTED_ESTIMATORS

SUPPORTED_ESTIMATORS = sorted(set(ADV_ESTIMATOR_REGISTRY) - set(UNSUPPORTED_ESTIMATORS))
POLICY_LOSSES = sorted(POLICY_LOSS_REGISTRY)


def advantages(estimator: str) -> torch.Tensor:
    """What veRL's v1 trainers compute from the fields that they fetch: two prompts of four rollouts."""
    rollouts, tokens = 8, 4
    mask = torch.ones(rollouts, tokens)
    mask[1, 2:] = 0
    reward = torch.zeros(rollouts, tokens)
    reward[:, 0] = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0])
    fields = {
        "response_mask": mask,
        "rm_scores": reward,
        "token_level_scores": reward,
        "token_level_rewards": reward,
        "values": torch.linspace(0, 1, rollouts * tokens).reshape(rollouts, tokens),
        "old_log_probs": -torch.ones(rollouts, tokens),
    }
    data = DataProto(batch=TensorDict(fields, batch_size=rollouts))
    data.non_tensor_batch["uid"] = np.array([f"prompt{row // 4}" for row in range(rollouts)], dtype=object)
    keys = [f"prompt{row // 4}_{row % 4}_0" for row in range(rollouts)]
    config = composed("+algorithm.gdpo_reward_keys=[acc]").algorithm
    found = compute_advantage_for_multi_trajectories(data, keys, estimator, num_repeat=4, config=config)
    return found.batch["advantages"]


@pytest.mark.parametrize("estimator", SUPPORTED_ESTIMATORS)
def test_an_estimator_that_is_let_through_runs_on_what_the_trainer_fetches(estimator):
    found = advantages(estimator)
    assert found.isfinite().all()
    assert found.abs().sum() > 0


@pytest.mark.parametrize("estimator", sorted(UNSUPPORTED_ESTIMATORS))
def test_an_estimator_that_is_refused_would_fail(estimator):
    with pytest.raises((AssertionError, KeyError, TypeError)):
        advantages(estimator)


def test_every_estimator_and_policy_loss_is_tried():
    assert len(SUPPORTED_ESTIMATORS) == 10
    assert len(POLICY_LOSSES) == 12


def test_the_page_in_the_docs_lists_them_all():
    page = PAGE.read_text()
    assert listed(page, "advantage estimator") == set(ADV_ESTIMATOR_REGISTRY)
    assert listed(page, "policy loss") == set(POLICY_LOSSES)
    assert listed(page, "trainer mode") == {f"{mode}-{updates}" for mode, updates in MODES}
    assert "**fails**" not in page


def config_of(loss_mode: str, entropy_coeff: float):
    config = actor_config("token-mean", entropy_coeff)
    correction = PolicyLossConfig().rollout_correction
    # clip_cov and kl_cov choose tokens by a share of them, and of so few tokens that would be none.
    policy_loss = PolicyLossConfig(
        loss_mode=loss_mode,
        clip_cov_ratio=0.2,
        clip_cov_lb=-1.0,
        kl_cov_ratio=0.2,
        dro_beta=0.1,
        rollout_correction=dataclasses.replace(correction, bypass_mode=loss_mode == "bypass_mode"),
    )
    return dataclasses.replace(config, policy_loss=policy_loss, clip_ratio_low=0.2, clip_ratio_high=0.28)


@pytest.mark.parametrize("loss_mode", POLICY_LOSSES)
@pytest.mark.guards("bug 11")
def test_the_entropy_term_is_the_same_beside_every_policy_loss(loss_mode):
    rows = make_rows(padding_rows=0)

    def trained(loss):
        torch.manual_seed(0)  # clip_cov picks tokens at random
        return train(loss, rows, dp_size=1, splits=1)

    loss, gradient, metrics = trained(partial(entropy_loss, config_of(loss_mode, 0.0), "token-mean"))
    expected_loss, expected_gradient, _ = trained(partial(ppo_loss, config_of(loss_mode, COEFFICIENT)))
    plain_loss, plain_gradient, _ = trained(partial(ppo_loss, config_of(loss_mode, 0.0)))

    assert loss == pytest.approx(expected_loss, rel=1e-6)
    scale = expected_gradient.abs().max()
    assert (gradient - expected_gradient).abs().max() <= 1e-6 * scale
    assert (gradient - plain_gradient).abs().max() > 1e-3 * scale
    assert metrics["actor/aer/policy_loss"] == pytest.approx(plain_loss, rel=1e-6)
    assert metrics["actor/aer/entropy_gradient"] == pytest.approx(COEFFICIENT, rel=1e-6)
    assert metrics["actor/aer/policy_gradient"] > 0


@pytest.mark.parametrize("with_weights", [False, True])
def test_importance_weights_move_the_policy_loss_and_not_the_entropy_term(with_weights):
    rows = make_rows(padding_rows=0)
    for row in rows:
        if with_weights:
            row["rollout_is_weights"] = torch.full_like(row["advantages"], 0.5)
    metrics = train(partial(entropy_loss, config_of("vanilla", 0.0), "token-mean"), rows, dp_size=2, splits=2)[2]
    whole = train(partial(entropy_loss, config_of("vanilla", 0.0), "token-mean"), make_rows(0), 2, 2)[2]
    factor = 0.5 if with_weights else 1.0
    assert metrics["actor/aer/policy_loss"] == pytest.approx(factor * whole["actor/aer/policy_loss"], rel=1e-6)
    assert metrics["actor/aer/entropy_term"] == pytest.approx(whole["actor/aer/entropy_term"], rel=1e-6)


@pytest.mark.guards("bug 5")
def test_masked_tool_tokens_neither_count_nor_get_a_bonus():
    """Multi-turn: tool output lies inside the response with mask 0, in the middle of it."""
    rows = make_rows(padding_rows=0)
    for row in rows:
        row["response_mask"] = row["response_mask"].clone()
        row["response_mask"][1:2] = 0  # the second token, where a response has one
        row["loss_mask"] = torch.cat([torch.zeros(len(row["prompts"])), row["response_mask"]])
    loss = partial(entropy_loss, config_of("vanilla", 0.0), "token-mean")
    _, gradient, metrics = train(loss, rows, dp_size=2, splits=2)
    assert metrics["actor/aer/update_tokens"] == sum(max(response - 1, 1) for _, response in LENGTHS)
    _, expected, _ = train(partial(ppo_loss, config_of("vanilla", COEFFICIENT)), rows, dp_size=2, splits=2)
    assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_kl_loss_stays_verls_own():
    rows = make_rows(padding_rows=0)
    for row in rows:
        row["ref_log_prob"] = row["old_log_probs"] - 0.1
    kl = {"use_kl_loss": True, "kl_loss_coef": 0.5}
    loss = partial(entropy_loss, dataclasses.replace(config_of("vanilla", 0.0), **kl), "token-mean")
    reference = partial(ppo_loss, dataclasses.replace(config_of("vanilla", COEFFICIENT), **kl))
    _, gradient, metrics = train(loss, rows, dp_size=2, splits=2)
    _, expected, _ = train(reference, rows, dp_size=2, splits=2)
    assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert metrics["kl_loss"] > 0
