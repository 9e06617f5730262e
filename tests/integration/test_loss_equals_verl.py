"""With ``entropy=fixed`` the loss and its gradients equal those of veRL's ``entropy_coeff``.

A small policy (token embedding → logits) is trained on one global mini-batch, split over data-parallel ranks and
micro-batches as in veRL's engines: each rank sums its micro-batches' gradients, ranks are averaged, and every
micro-batch carries the *global* counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer.integration.batch import WEIGHT_FIELD
from verl_aer.integration.loss import (
    ALPHA_KEY,
    UPDATE_ENTROPY_NATS,
    UPDATE_TOKENS,
    WEIGHTED_ROWS_KEY,
    entropy_loss,
)

LOSS_AGG_MODES = [
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "seq-mean-token-mean",
]
COEFFICIENT = 0.05
VOCABULARY = 11
MAX_RESPONSE = 6
# Prompt and response lengths of eight rollouts; unequal on purpose, so that a mean of means shows.
LENGTHS = [(3, 5), (2, 1), (4, 6), (3, 2), (2, 4), (5, 3), (2, 6), (3, 3)]


@dataclass
class Policy:
    """logits of the next token = row of a table; the gradient of the table is what is compared."""

    table: torch.Tensor

    def __call__(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Per-token log-prob of the next token and entropy, nested like the engine's ``model_output``."""
        log_prob = self.table[input_ids.values()].log_softmax(-1)
        following = input_ids.values().roll(-1)
        outputs = {
            "log_probs": log_prob.gather(-1, following[:, None]).squeeze(-1),
            "entropy": -(log_prob.exp() * log_prob).sum(-1),
        }
        offsets = input_ids.offsets()
        return {k: torch.nested.nested_tensor_from_jagged(v, offsets) for k, v in outputs.items()}


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def make_rows(padding_rows: int, weights: list[float] | None = None) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i, (prompt, response) in enumerate(LENGTHS + [(7, 1)] * padding_rows):
        is_padding = i >= len(LENGTHS)
        ids = torch.randint(VOCABULARY, (prompt + response,), generator=generator)
        mask = torch.zeros(response) if is_padding else torch.ones(response)
        rows.append(
            {
                "input_ids": ids,
                "prompts": ids[:prompt],
                "responses": ids[prompt:],
                "response_mask": mask,
                "loss_mask": torch.cat([torch.zeros(prompt), mask]),
                "old_log_probs": -torch.rand(response, generator=generator) * 3,
                "advantages": torch.randn((), generator=generator) * mask,
                WEIGHT_FIELD: torch.tensor(0.0 if is_padding else (weights[i] if weights else 1.0)),
            }
        )
    return rows


def micro_batch(rows: list[dict[str, torch.Tensor]], dp_size: int, tokens: float, total: int) -> TensorDict:
    fields = {k: nested([row[k] for row in rows]) for k in rows[0] if k != WEIGHT_FIELD}
    fields[WEIGHT_FIELD] = torch.stack([row[WEIGHT_FIELD] for row in rows])
    data = TensorDict(fields, batch_size=len(rows))
    tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=tokens, global_batch_size=total)
    tu.assign_non_tensor(data, **{ALPHA_KEY: COEFFICIENT})
    return data


def actor_config(mode: str, entropy_coeff: float) -> FSDPActorConfig:
    return FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=2,
        ppo_mini_batch_size=4,
        ppo_micro_batch_size_per_gpu=1,
        loss_agg_mode=mode,
        # Without it seq-mean-token-sum-norm divides by each micro-batch's own width; the preflight asks for it.
        loss_scale_factor=MAX_RESPONSE,
        entropy_coeff=entropy_coeff,
        calculate_entropy=True,
    )


def initial_table() -> torch.Tensor:
    return torch.linspace(-2, 2, VOCABULARY**2).reshape(VOCABULARY, VOCABULARY).sin().mul(2)


def train(loss_fn, rows, dp_size: int, splits: int) -> tuple[float, torch.Tensor, dict[str, float]]:
    """Loss and gradient of one global mini-batch, and each metric as veRL reduces it."""
    table = initial_table().requires_grad_()
    tokens = sum(row["response_mask"].sum().item() for row in rows)
    per_rank = len(rows) // dp_size
    loss_sum = torch.zeros(())
    metrics: dict[str, float] = {}
    for rank in range(dp_size):
        mine = rows[rank * per_rank : (rank + 1) * per_rank]
        size = -(-len(mine) // splits)
        for start in range(0, len(mine), size):
            data = micro_batch(mine[start : start + size], dp_size, tokens, len(rows))
            loss, found = loss_fn(model_output=Policy(table)(data["input_ids"]), data=data, dp_group=None)
            (loss / dp_size).backward()  # FSDP averages gradients over ranks
            loss_sum += loss.detach() / dp_size
            for name, metric in found.items():
                value = metric.aggregate() if hasattr(metric, "aggregate") else metric
                metrics[name] = metrics.get(name, 0.0) + value / dp_size
    return loss_sum.item(), table.grad, metrics


def ours(mode: str, aggregation: str = "same_as_policy_loss"):
    return partial(entropy_loss, actor_config(mode, entropy_coeff=0.0), aggregation)


def verls(mode: str, entropy_coeff: float = COEFFICIENT):
    return partial(ppo_loss, actor_config(mode, entropy_coeff))


@pytest.mark.parametrize("padding_rows", [0, 4])
@pytest.mark.parametrize("dp_size", [1, 2])
@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.guards("T19")
def test_fixed_equals_verls_own_entropy_term(mode, splits, dp_size, padding_rows):
    rows = make_rows(padding_rows)
    loss, gradient, _ = train(ours(mode), rows, dp_size, splits)
    reference_loss, reference_gradient, _ = train(verls(mode), rows, dp_size, splits)

    assert loss == pytest.approx(reference_loss, rel=1e-6)
    scale = reference_gradient.abs().max()
    assert (gradient - reference_gradient).abs().max() <= 1e-6 * scale
    # The entropy term is no rounding error of that comparison: without it the gradient is another one.
    without = train(verls(mode, entropy_coeff=0.0), rows, dp_size, splits)[1]
    assert (without - reference_gradient).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.guards("bug 7", "T19")
def test_weighted_term_does_not_depend_on_how_the_batch_is_cut(mode):
    weights = [1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.25, 0.25]
    rows = make_rows(padding_rows=0, weights=weights)
    whole_loss, whole_gradient, whole = train(ours(mode, "token-mean"), rows, dp_size=1, splits=1)
    for dp_size, splits in [(1, 4), (2, 1), (2, 2), (2, 4)]:
        loss, gradient, metrics = train(ours(mode, "token-mean"), rows, dp_size, splits)
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        assert (gradient - whole_gradient).abs().max() <= 1e-6 * whole_gradient.abs().max()
        ours_alone = [name for name in whole if name.startswith("actor/aer/")]
        assert len(ours_alone) == 6
        for name in ours_alone:
            assert metrics[name] == pytest.approx(whole[name], rel=1e-6), name


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.guards("bug 6", "T15", "T20")
def test_token_mean_bonus_has_one_meaning_in_every_mode(mode):
    rows = make_rows(padding_rows=0)
    metrics = train(ours(mode, "token-mean"), rows, dp_size=2, splits=2)[2]
    # All weights are 1: the term is α times the plain token mean of the entropy, whatever the policy loss does.
    mean = metrics[UPDATE_ENTROPY_NATS] / metrics[UPDATE_TOKENS]
    assert metrics["actor/aer/entropy_term"] == pytest.approx(COEFFICIENT * mean, rel=1e-6)
    assert metrics[UPDATE_TOKENS] == sum(response for _, response in LENGTHS)


def entropy_by_hand(table: torch.Tensor, rows) -> torch.Tensor:
    """Token mean of the entropy of the distributions that the response tokens were drawn from."""
    nats = torch.distributions.Categorical(logits=table).entropy()
    # Response token t was drawn from the row of the token before it.
    drawn_from = [row["input_ids"][len(row["prompts"]) - 1 : -1] for row in rows]
    return torch.cat([nats[ids] for ids in drawn_from]).mean()


@pytest.mark.guards("bug 3", "T15")
def test_update_entropy_is_the_token_mean_by_hand():
    rows = make_rows(padding_rows=4)
    metrics = train(ours("token-mean"), rows, dp_size=2, splits=2)[2]
    by_hand = entropy_by_hand(initial_table(), rows[: len(LENGTHS)]).item()
    assert metrics[UPDATE_ENTROPY_NATS] / metrics[UPDATE_TOKENS] == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.guards("bug 10")
def test_gradient_of_the_entropy_term_alone_by_hand():
    rows = make_rows(padding_rows=0)
    for row in rows:
        row["advantages"] = torch.zeros_like(row["advantages"])
    gradient = train(ours("token-mean"), rows, dp_size=1, splits=1)[1]
    table = initial_table().requires_grad_()
    (-COEFFICIENT * entropy_by_hand(table, rows)).backward()
    # Two ways to the same float32 gradient, each with its own rounding.
    assert (gradient - table.grad).abs().max() <= 1e-5 * table.grad.abs().max()


def test_of_sample_takes_the_log_probs_of_the_sampled_tokens_for_their_entropy():
    rows = make_rows(padding_rows=4)
    for row in rows:
        row["advantages"] = torch.zeros_like(row["advantages"])
    loss = partial(entropy_loss, actor_config("token-mean", entropy_coeff=0.0), "token-mean", from_log_probs=True)
    _, gradient, metrics = train(loss, rows, dp_size=2, splits=2)

    table = initial_table().requires_grad_()
    real = rows[: len(LENGTHS)]
    log_probs = [table.log_softmax(-1)[row["input_ids"][:-1], row["input_ids"][1:]] for row in real]
    sampled = -torch.cat([row[len(ids["prompts"]) - 1 :] for row, ids in zip(log_probs, real, strict=True)])
    (-COEFFICIENT * sampled.mean()).backward()
    assert metrics[UPDATE_ENTROPY_NATS] / metrics[UPDATE_TOKENS] == pytest.approx(sampled.mean().item(), rel=1e-6)
    assert (gradient - table.grad).abs().max() <= 1e-5 * table.grad.abs().max()


def test_of_sample_needs_no_entropy_from_the_engine():
    data = micro_batch(make_rows(padding_rows=0), dp_size=1, tokens=30, total=8)
    output = Policy(initial_table().requires_grad_())(data["input_ids"])
    del output["entropy"]
    loss, _ = entropy_loss(actor_config("token-mean", 0.0), "token-mean", output, data, from_log_probs=True)
    assert loss.isfinite()


def test_sizes_of_both_gradients_by_hand():
    weights = [1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.25, 0.25]
    rows = make_rows(padding_rows=4, weights=weights)
    log_probs = initial_table().log_softmax(-1)
    for row in rows:
        ids, start = row["input_ids"], len(row["prompts"])
        # On policy: the ratio is 1, so ∂L/∂log π = −A / tokens.
        row["old_log_probs"] = log_probs[ids[start - 1 : -1], ids[start:]]
    metrics = train(ours("token-mean"), rows, dp_size=2, splits=2)[2]
    tokens = sum(response for _, response in LENGTHS)
    advantage = sum(row["advantages"].abs().sum().item() for row in rows)
    assert metrics["actor/aer/policy_gradient"] == pytest.approx(advantage / tokens, rel=1e-6)
    weighted = sum(weight * response for weight, (_, response) in zip(weights, LENGTHS, strict=True))
    assert metrics["actor/aer/entropy_gradient"] == pytest.approx(COEFFICIENT * weighted / tokens, rel=1e-6)


def test_row_of_weight_zero_gets_no_entropy_gradient():
    weights = [0.0] * 8
    rows = make_rows(padding_rows=0, weights=weights)
    _, gradient, metrics = train(ours("token-mean"), rows, dp_size=1, splits=1)
    _, plain, _ = train(verls("token-mean", entropy_coeff=0.0), rows, dp_size=1, splits=1)
    assert torch.equal(gradient, plain)
    assert metrics["actor/aer/entropy_term"] == 0.0


def marked(loss_fn):
    """The loss of a batch whose mark says that the entropy of rows without a coefficient was left out."""

    def loss(**contract):
        tu.assign_non_tensor(contract["data"], **{WEIGHTED_ROWS_KEY: True})
        return loss_fn(**contract)

    return loss


@pytest.mark.parametrize("splits", [1, 4])
def test_verls_entropy_metric_is_verls_where_all_rows_have_an_entropy_and_absent_elsewhere(splits):
    rows = make_rows(padding_rows=4, weights=[1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.25, 0.25])
    _, gradient, complete = train(ours("token-mean"), rows, dp_size=2, splits=splits)
    _, _, verl = train(verls("token-mean", entropy_coeff=0.0), rows, dp_size=2, splits=splits)
    assert complete["actor/entropy_loss"] == verl["actor/entropy_loss"] > 0
    _, marked_gradient, incomplete = train(marked(ours("token-mean")), rows, dp_size=2, splits=splits)
    # Not 0, and not the mean of the rows that are there: no rank and no micro-batch reports it.
    assert set(complete) - set(incomplete) == {"actor/entropy_loss"}
    assert torch.equal(gradient, marked_gradient)


def test_the_entropy_is_padded_once_and_our_metrics_are_read_at_once(monkeypatch):
    data = micro_batch(make_rows(padding_rows=0), dp_size=1, tokens=30, total=8)
    output = Policy(initial_table().requires_grad_())(data["input_ids"])
    reads = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: reads.append(tensor) or item(tensor))
    verls("token-mean", entropy_coeff=0.0)(model_output={"log_probs": output["log_probs"]}, data=data)
    verls_own = len(reads)
    no_padding_2_padding(output["entropy"], data)
    padding = len(reads) - verls_own
    assert padding > 0
    reads.clear()
    marked(ours("token-mean"))(model_output=output, data=data)
    # Each read waits for the device; our six metrics are one read, and no `item`.
    assert len(reads) == verls_own + padding


@pytest.mark.parametrize("absent", [WEIGHT_FIELD, ALPHA_KEY, "entropy"])
@pytest.mark.guards("T7", "T16")
def test_absent_is_an_error_not_zero(absent):
    rows = make_rows(padding_rows=0)
    data = micro_batch(rows, dp_size=1, tokens=30, total=8)
    table = torch.zeros(VOCABULARY, VOCABULARY, requires_grad=True)
    output = Policy(table)(data["input_ids"])
    if absent == "entropy":
        del output["entropy"]
    else:
        del data[absent]
    with pytest.raises(KeyError, match=absent):
        ours("token-mean")(model_output=output, data=data)


@pytest.mark.guards("T8")
def test_weights_may_come_back_with_a_trailing_dimension():
    rows = make_rows(padding_rows=0)
    data = micro_batch(rows, dp_size=1, tokens=30, total=8)
    table = torch.zeros(VOCABULARY, VOCABULARY, requires_grad=True)
    flat, _ = ours("token-mean")(model_output=Policy(table)(data["input_ids"]), data=data)
    data[WEIGHT_FIELD] = data[WEIGHT_FIELD].reshape(-1, 1)
    column, _ = ours("token-mean")(model_output=Policy(table)(data["input_ids"]), data=data)
    assert flat.item() == column.item()
