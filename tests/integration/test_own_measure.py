"""A user-defined measure in the engine: bounded memory, and no computation where its entropy is not used."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import verl.workers.engine  # noqa: F401  # first: it asks for ours

from tests.unit.test_kernels_recomputed import Collision
from verl_aer.integration.engine import EntropyEngine, Rows
from verl_aer.kernels.saved_state import CHUNK_BYTES
from verl_aer.parts.measure import Full

TOKENS, VOCABULARY = 12, 40
COUNTED = (torch.arange(TOKENS) % 4 == 1).float()


def computed(measure: Full | Collision, logits: torch.Tensor, counted: torch.Tensor | None):
    rows = Rows(logits, torch.arange(TOKENS), torch.linspace(0.5, 2.0, TOKENS))
    engine = SimpleNamespace(_columns=lambda measure: None)
    return EntropyEngine._log_probs_and_entropy(engine, rows, measure, counted)


def logits_of() -> torch.Tensor:
    return torch.randn(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("counted", [None, COUNTED], ids=["everywhere", "some tokens"])
def test_values_and_gradients_are_those_of_the_measure_and_the_log_probs(counted, monkeypatch):
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * VOCABULARY * 2)
    weight = torch.ones(TOKENS) if counted is None else counted
    leaf, plain = logits_of().requires_grad_(), logits_of().requires_grad_()
    measure = Collision()
    log_probs, entropy = computed(measure, leaf * 1.0, counted)
    assert max(rows for rows, *_ in measure.calls) == 2
    z = plain.float() / torch.linspace(0.5, 2.0, TOKENS)[:, None]
    wanted = z.log_softmax(-1)[torch.arange(TOKENS), torch.arange(TOKENS)], Collision().entropy(z) * weight
    torch.testing.assert_close((log_probs, entropy), wanted)
    (log_probs.sum() + entropy.square().sum()).backward()
    (wanted[0].sum() + wanted[1].square().sum()).backward()
    # Two gradients are added up in bfloat16.
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=2**-7, atol=2**-8)


def test_without_a_token_that_is_read_it_costs_what_log_probs_cost():
    measure, leaf = Collision(), logits_of().requires_grad_()
    inner = leaf * 1.0
    place, seen = inner.data_ptr(), []
    inner.register_hook(lambda grad: seen.append(grad.data_ptr()))
    log_probs, entropy = computed(measure, inner, torch.zeros(TOKENS))
    log_probs.sum().backward()
    assert measure.calls == []
    assert (entropy == 0).all()
    # The gradient takes the place of the logits.
    assert seen == [place]


def test_a_subclass_of_a_measure_of_this_package_is_asked_itself():
    class Doubled(Full):
        def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return 2 * super().entropy(logits)

    _, entropy = computed(Doubled(), logits_of(), None)
    torch.testing.assert_close(entropy, 2 * computed(Full(), logits_of(), None)[1])
