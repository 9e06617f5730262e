"""Selections and regularizers in the loss, against the formula computed by hand, for any split of the batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from verl.utils import tensordict_utils as tu

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from tests.integration.test_loss_equals_verl import (
    COEFFICIENT,
    LENGTHS,
    VOCABULARY,
    Policy,
    actor_config,
    initial_table,
    make_rows,
    micro_batch,
    train,
)
from verl_aer import get_part, parse_entropy_config, part_names
from verl_aer.integration.batch import WEIGHT_FIELD
from verl_aer.integration.loss import SIGNAL_KEY, UPDATE_ENTROPY_NATS, UPDATE_TOKENS, entropy_loss
from verl_aer.parts.regularizer import HistoryHinge, SquaredAnchor
from verl_aer.parts.token_selection import TopQuantile

SIGNALS = {"squared_anchor": '{"pull": -0.5}', "history_hinge": '{"weight": 0.75, "low": 2.386, "high": 2.396}'}


def loss_of(aggregation: str = "token-mean", signal: str = "{}", **parts: object):
    bound = partial(entropy_loss, actor_config("token-mean", entropy_coeff=0.0), aggregation, **parts)

    def loss(**contract):
        tu.assign_non_tensor(contract["data"], **{SIGNAL_KEY: signal})
        return bound(**contract)

    return loss


def entropies(table: torch.Tensor, rows) -> list[torch.Tensor]:
    """Of each response token, by veRL's own shift: token t was drawn from the row of the token before it."""
    nats = torch.distributions.Categorical(logits=table).entropy()
    return [nats[row["input_ids"][len(row["prompts"]) - 1 : -1]] for row in rows]


def gradient_by_hand(term) -> torch.Tensor:
    table = initial_table().requires_grad_()
    (-COEFFICIENT * term(table)).backward()
    return table.grad


def rows_without_advantage() -> list[dict[str, torch.Tensor]]:
    rows = make_rows(padding_rows=0)
    for row in rows:
        row["advantages"] = torch.zeros_like(row["advantages"])
    return rows


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("regularizer", part_names("regularizer"))
@pytest.mark.parametrize("token_selection", part_names("token_selection"))
def test_nothing_depends_on_how_the_batch_is_cut(token_selection, regularizer, aggregation):
    loss_fn = loss_of(
        aggregation,
        SIGNALS.get(regularizer, "{}"),
        token_selection=get_part("token_selection", token_selection)(),
        regularizer=get_part("regularizer", regularizer)(),
    )
    rows = make_rows(padding_rows=4, weights=[1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.25, 0.25])
    whole_loss, whole_gradient, whole = train(loss_fn, rows, dp_size=1, splits=1)
    for dp_size, splits in [(1, 4), (2, 1), (2, 3)]:
        loss, gradient, metrics = train(loss_fn, rows, dp_size, splits)
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        assert (gradient - whole_gradient).abs().max() <= 1e-6 * whole_gradient.abs().max()
        for name in (name for name in whole if name.startswith("actor/aer/")):
            assert metrics[name] == pytest.approx(whole[name], rel=1e-6, abs=1e-12), name


def test_selected_tokens_alone_are_pushed_and_measured():
    rows = rows_without_advantage()
    quantile = TopQuantile(quantile=0.5)
    _, gradient, metrics = train(loss_of(token_selection=quantile), rows, dp_size=2, splits=2)

    def term(table: torch.Tensor) -> torch.Tensor:
        means = []
        for nats in entropies(table, rows):
            count = len(nats) - -(-(len(nats) - 1) // 2)  # n - ceil((n - 1) / 2)
            means.append(nats.topk(count).values.mean() * len(nats))
        return sum(means) / sum(response for _, response in LENGTHS)

    by_hand = gradient_by_hand(term)
    assert (gradient - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
    assert metrics[UPDATE_ENTROPY_NATS] / metrics[UPDATE_TOKENS] == pytest.approx(
        term(initial_table()).item(), rel=1e-6
    )


def sampled_nats(table: torch.Tensor, rows) -> list[torch.Tensor]:
    log_prob = table.log_softmax(-1)
    return [-log_prob[row["input_ids"][:-1], row["input_ids"][1:]][len(row["prompts"]) - 1 :] for row in rows]


@pytest.mark.parametrize("from_log_probs", [False, True])
@pytest.mark.parametrize("measured_from_log_probs", [None, False, True])
def test_one_measure_is_pushed_and_another_measured(from_log_probs, measured_from_log_probs):
    rows = rows_without_advantage()
    parts = {"from_log_probs": from_log_probs, "measured_from_log_probs": measured_from_log_probs}
    _, gradient, metrics = train(loss_of(**parts), rows, dp_size=2, splits=2)
    of = {False: entropies, True: sampled_nats}
    by_hand = gradient_by_hand(lambda table: torch.cat(of[from_log_probs](table, rows)).mean())
    assert (gradient - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
    measured = of[from_log_probs if measured_from_log_probs is None else measured_from_log_probs](initial_table(), rows)
    mean = torch.cat(measured).mean().item()
    assert metrics[UPDATE_ENTROPY_NATS] / metrics[UPDATE_TOKENS] == pytest.approx(mean, rel=1e-6)


def sampled_rows(table: torch.Tensor, generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
    """64 responses of 6 tokens, drawn from the policy as it is, all of the same reward: no advantage."""
    ids = torch.randint(VOCABULARY, (64, 1), generator=generator)
    for _ in range(6):
        ids = torch.cat([ids, torch.multinomial(table[ids[:, -1]].softmax(-1), 1, generator=generator)], dim=-1)
    of_token = table.log_softmax(-1)[ids[:, :-1], ids[:, 1:]]
    return [
        {
            "input_ids": row,
            "prompts": row[:1],
            "responses": row[1:],
            "response_mask": torch.ones(6),
            "loss_mask": torch.tensor([0.0] + [1.0] * 6),
            "old_log_probs": old,
            "advantages": torch.zeros(6),
            WEIGHT_FIELD: torch.tensor(1.0),
        }
        for row, old in zip(ids, of_token, strict=True)
    ]


def entropy_under_the_bonus(method: str, steps: int, **entropy: object) -> list[float]:
    """Mean entropy of a softmax policy, before each step and at the end, with nothing but the method's bonus."""
    pushed = parse_entropy_config({"method": method, **entropy}).pushed_measure
    loss_fn = loss_of(from_log_probs=pushed.from_log_probs)
    generator = torch.Generator().manual_seed(0)
    table = (3 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)).requires_grad_()
    optimizer = torch.optim.SGD([table], lr=100.0)
    found = []
    for _ in range(steps):
        found.append(torch.distributions.Categorical(logits=table.detach()).entropy().mean().item())
        data = micro_batch(sampled_rows(table.detach(), generator), dp_size=1, tokens=64 * 6, total=64)
        loss, _ = loss_fn(model_output=Policy(table)(data["input_ids"]), data=data, dp_group=None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*found, torch.distributions.Categorical(logits=table.detach()).entropy().mean().item()]


def test_skyworks_bonus_raises_the_entropy_and_that_of_the_sample_does_not():
    full = entropy_under_the_bonus("skywork", steps=60)
    assert full[-1] > full[0] + 0.7
    assert full == sorted(full)
    # On-policy the gradient of -log pi of the sampled token is zero in expectation: what is left is noise.
    sampled = entropy_under_the_bonus("skywork", steps=60, pushed={"kind": "same"})
    assert max(sampled) < sampled[0] + 0.1


def test_each_measure_selects_its_own_tokens():
    rows = rows_without_advantage()
    parts = {"token_selection": TopQuantile(quantile=0.5), "from_log_probs": False, "measured_from_log_probs": True}
    _, _, metrics = train(loss_of(**parts), rows, dp_size=2, splits=2)
    means = []
    for nats in sampled_nats(initial_table(), rows):
        count = len(nats) - -(-(len(nats) - 1) // 2)  # n - ceil((n - 1) / 2)
        means.append(nats.topk(count).values.mean() * len(nats))
    by_hand = sum(means) / sum(response for _, response in LENGTHS)
    assert metrics[UPDATE_ENTROPY_NATS] / metrics[UPDATE_TOKENS] == pytest.approx(by_hand.item(), rel=1e-6)


def test_squared_anchor_has_the_gradient_of_the_square():
    rows = rows_without_advantage()
    mean = torch.cat(entropies(initial_table(), rows)).mean().item()
    anchor = mean - 0.25
    signal = f'{{"pull": {2 * (anchor - mean)!r}}}'
    _, gradient, _ = train(loss_of(signal=signal, regularizer=SquaredAnchor()), rows, dp_size=2, splits=2)
    by_hand = gradient_by_hand(lambda table: -((torch.cat(entropies(table, rows)).mean() - anchor) ** 2))
    assert (gradient - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()


def test_the_hinge_draws_back_what_is_outside():
    rows = rows_without_advantage()
    loss_fn = loss_of("seq-mean-token-mean", SIGNALS["history_hinge"], regularizer=HistoryHinge(total_steps=10))
    _, gradient, metrics = train(loss_fn, rows, dp_size=2, splits=2)

    def term(table: torch.Tensor) -> torch.Tensor:
        def value(nats: torch.Tensor) -> torch.Tensor:
            return nats - 0.75 * ((2.386 - nats).clamp(min=0) + (nats - 2.396).clamp(min=0))

        return torch.stack([value(nats).mean() for nats in entropies(table, rows)]).mean()

    nats = torch.cat(entropies(initial_table(), rows))
    assert ((nats < 2.386).any(), (nats > 2.396).any()) == (True, True)
    by_hand = gradient_by_hand(term)
    assert (gradient - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
    assert metrics["actor/aer/entropy_term"] == pytest.approx(COEFFICIENT * term(initial_table()).item(), rel=1e-6)


def test_the_gradients_size_is_that_of_the_term():
    rows = rows_without_advantage()
    signal = SIGNALS["history_hinge"]
    _, _, metrics = train(loss_of(signal=signal, regularizer=HistoryHinge(total_steps=10)), rows, dp_size=2, splits=2)
    nats = torch.cat(entropies(initial_table(), rows)).detach().requires_grad_()
    (COEFFICIENT * (nats - 0.75 * ((2.386 - nats).clamp(min=0) + (nats - 2.396).clamp(min=0))).mean()).backward()
    assert metrics["actor/aer/entropy_gradient"] == pytest.approx(nats.grad.abs().sum().item(), rel=1e-6)


def test_a_penalty_whose_numbers_were_not_sent_is_an_error():
    data = micro_batch(make_rows(padding_rows=0), dp_size=1, tokens=30, total=8)
    output = Policy(initial_table().requires_grad_())(data["input_ids"])
    loss = partial(entropy_loss, actor_config("token-mean", 0.0), "token-mean", regularizer=SquaredAnchor())
    with pytest.raises(KeyError, match="pull"):
        loss(model_output=output, data=data)
