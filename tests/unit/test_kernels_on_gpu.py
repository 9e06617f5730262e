"""The compiled Triton kernels compared with the PyTorch backend in float64, on a GPU: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from tests.unit.test_kernels import MEASURES, both_ways, weights_of
from verl_aer.kernels import logprob_and_entropy
from verl_aer.kernels import logprob_entropy as operation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
ROWS = 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocabulary", [5, 32_000, 151_936])
@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_compiled_kernels_equal_float64(measure, vocabulary, dtype):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (3 * torch.randn(ROWS, vocabulary, generator=generator)).to(dtype).cuda()
    labels = torch.randint(vocabulary, (ROWS,), generator=generator).cuda()
    temperature = torch.linspace(0.5, 2.0, ROWS).cuda()
    weights = weights_of(ROWS).cuda()
    assert operation._backend(logits).__name__.endswith("triton_rows")
    found = both_ways(lambda z: logprob_and_entropy(z, labels, temperature, measure), logits, weights)
    wanted = both_ways(
        lambda z: logprob_and_entropy(z, labels, temperature, measure), logits.double(), weights.double()
    )
    for ours, theirs in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    half_a_unit = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    scale = wanted[2].abs().max()
    assert ((found[2].double() - wanted[2]).abs() <= half_a_unit * wanted[2].abs() + 1e-6 * scale).all()


def test_transposed_logits_whose_columns_are_further_apart_than_an_int_can_count():
    rows, vocabulary = 14_200, 151_936
    logits = torch.zeros(vocabulary, rows, dtype=torch.bfloat16, device="cuda").t()
    logits[:2, -1] = 8.0
    log_pi, entropy = logprob_and_entropy(logits[:2], torch.full((2,), vocabulary - 1, device="cuda"))
    contiguous = logprob_and_entropy(logits[:2].contiguous(), torch.full((2,), vocabulary - 1, device="cuda"))
    assert torch.equal(log_pi, contiguous[0])
    assert torch.equal(entropy, contiguous[1])


def test_more_elements_than_an_int_can_count():
    rows, vocabulary = 14_200, 151_936
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, device="cuda").requires_grad_()
    labels = torch.full((rows,), vocabulary - 1, device="cuda")
    log_pi, entropy = logprob_and_entropy(logits, labels, inplace=False)
    (log_pi.sum() + entropy.sum()).backward()
    assert (entropy == entropy[0]).all()
    assert (logits.grad[-1] == logits.grad[0]).all()
