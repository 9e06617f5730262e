from __future__ import annotations

import math

import pytest
import torch

from verl_aer.functional import Full


def test_a_uniform_distribution_has_log_v_nats():
    assert Full().entropy(torch.full((2, 8), 3.0)) == pytest.approx([math.log(8)] * 2, abs=1e-6)


def test_entropy_of_known_probabilities():
    # H(1/2, 1/4, 1/8, 1/8) = 1/2 log 2 + 1/4 log 4 + 2/8 log 8 = 1.75 log 2
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]])) + 7.0
    assert Full().entropy(logits).item() == pytest.approx(1.75 * math.log(2), abs=1e-6)


def test_excluded_vocabulary_entries_add_nothing_and_have_a_gradient_of_zero():
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    entropy = Full().entropy(logits)
    entropy.sum().backward()
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-6)
    assert logits.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_the_gradient_is_that_of_the_entropy():
    # dH/dz_j = -pi_j (log pi_j + H)
    logits = torch.tensor([[1.0, -0.5, 2.0, 0.3]], dtype=torch.float64, requires_grad=True)
    entropy = Full().entropy(logits)
    entropy.sum().backward()
    log_pi = torch.log_softmax(logits.detach(), dim=-1)
    expected = -log_pi.exp() * (log_pi + entropy.detach())
    assert torch.allclose(logits.grad, expected, atol=1e-12)


def test_narrow_logits_are_accumulated_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(4, 151_936, generator=generator)).bfloat16()
    entropy = Full().entropy(logits)
    assert entropy.dtype == torch.float32
    # Sums in bfloat16 are off by about 0.1 nat here, float32 by rounding only.
    assert torch.allclose(entropy.double(), Full().entropy(logits.double()), atol=1e-4)
