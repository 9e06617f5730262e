from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from verl_aer.parts.measure import Clamped, Full, Measure, Nucleus, Sampled


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


# ------------------------------------------------------------------ each measure against a float64 reference


ROWS = 2


def logits_of(kind: str, vocabulary: int) -> torch.Tensor:
    """Float64 logits that float32 and float64 hold alike."""
    generator = torch.Generator().manual_seed(vocabulary)
    noise = torch.randn(ROWS, vocabulary, generator=generator)
    if kind == "peaked":
        noise[torch.arange(ROWS), torch.randint(vocabulary, (ROWS,), generator=generator)] += 15.0
    elif kind == "flat":
        noise = noise * 1e-3
    elif kind == "tied":
        # Quarters: exact in every type, and many are equal.
        noise = (noise * 2).round() / 4
    return noise.float().double()


def kept_by_hand(measure: Measure, z: np.ndarray) -> np.ndarray:
    """The tokens over which one row's entropy is taken, ``(K,)`` indices."""
    index = np.arange(len(z))
    if isinstance(measure, Clamped):
        return np.lexsort((index, z))[int(measure.p * len(z)) :]
    if isinstance(measure, Nucleus) and measure.p < 1:
        order = np.lexsort((index, -z))
        pi = np.exp((z - z.max())[order])
        reached = np.cumsum(pi / pi.sum()) >= measure.p
        return order[: reached.argmax() + 1]
    return index


def by_hand(measure: Measure, z: np.ndarray) -> tuple[float, np.ndarray]:
    """H and dH/dz of one row: -pi_j (log pi_j + H) on the kept tokens, 0 on the others."""
    kept = kept_by_hand(measure, z)
    # More digits than float64: the formula cancels where one token has it all, and where all have the same.
    y = (z[kept] - z[kept].max()).astype(np.longdouble)
    log_pi = y - np.log(np.exp(y).sum())
    pi = np.exp(log_pi)
    entropy = -(pi * log_pi).sum()
    gradient = np.zeros(len(z))
    gradient[kept] = -pi * (log_pi + entropy)
    return float(entropy), gradient


MEASURES = [
    Full(),
    Clamped(p=0.0),
    Clamped(p=0.3),
    Clamped(p=0.999),
    Nucleus(p=0.05),
    Nucleus(p=0.8),
    Nucleus(p=1.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [5, 64, 1000, 151_936])
@pytest.mark.parametrize("kind", ["plain", "peaked", "flat", "tied"])
@pytest.mark.parametrize("measure", MEASURES, ids=repr)
def test_value_and_gradient_equal_a_float64_reference(measure, kind, vocabulary, dtype):
    exact = logits_of(kind, vocabulary)
    logits = exact.to(dtype, copy=True).requires_grad_()
    entropy = measure.entropy(logits)
    entropy.sum().backward()
    relative = 1e-6 if dtype == torch.float32 else 1e-12
    for row in range(len(exact)):
        expected, gradient = by_hand(measure, exact[row].numpy())
        assert entropy[row].item() == pytest.approx(expected, rel=relative)
        error = np.abs(logits.grad[row].double().numpy() - gradient).max()
        assert error <= relative * np.abs(gradient).max()


@pytest.mark.parametrize("measure", [Full(), Clamped(p=0.4), Nucleus(p=0.7)], ids=repr)
def test_gradcheck_in_float64(measure):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(measure.entropy, logits, atol=1e-9, rtol=1e-9, eps=1e-6)


def test_gradcheck_of_the_sampled_measure():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 6, 3, 3])
    assert torch.autograd.gradcheck(lambda z: Sampled().entropy(z, labels), logits, atol=1e-9, rtol=1e-9, eps=1e-6)


def test_clamped_leaves_out_the_lowest_and_not_the_highest():
    logits = torch.tensor([[5.0, 1.0, 0.0, 4.0, 3.0]], requires_grad=True)
    Clamped(p=0.4).entropy(logits).sum().backward()
    assert (logits.grad != 0).tolist() == [[True, False, False, True, True]]


def test_of_tied_tokens_clamped_leaves_out_those_of_lower_index_and_exactly_k():
    logits = torch.zeros(1, 10, requires_grad=True)
    # Equal probabilities have no gradient: a nudge on one kept token shows which the others are.
    with torch.no_grad():
        logits[0, 9] = 1.0
    entropy = Clamped(p=0.3).entropy(logits)
    entropy.sum().backward()
    assert (logits.grad != 0).tolist() == [[False] * 3 + [True] * 7]


def test_excluded_entries_are_not_counted_among_the_lowest():
    # Padded columns at -inf: of the four real tokens one is left out, not one of the six columns' third.
    logits = torch.tensor([[-math.inf, 1.0, 2.0, 3.0, 0.0, -math.inf]], requires_grad=True)
    entropy = Clamped(p=0.25).entropy(logits)
    entropy.sum().backward()
    assert (logits.grad != 0).tolist() == [[False, True, True, True, False, False]]
    pi = torch.softmax(torch.tensor([1.0, 2.0, 3.0]), dim=0)
    assert entropy.item() == pytest.approx(-(pi * pi.log()).sum().item(), rel=1e-6)
    # Rows may have different numbers of them.
    both = torch.cat([logits.detach(), torch.arange(6.0)[None]])
    assert Clamped(p=0.25).entropy(both)[0].item() == pytest.approx(entropy.item(), rel=1e-6)


def test_bfloat16_logits_have_many_ties_and_the_count_stays_exact():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1000, generator=generator).bfloat16().requires_grad_()
    assert len(logits[0].unique()) < 900
    Clamped(p=0.3).entropy(logits).sum().backward()
    assert ((logits.grad != 0).sum(dim=-1) == 700).all()


def test_nucleus_is_the_smallest_set_that_holds_the_mass():
    logits = torch.log(torch.tensor([[0.05, 0.5, 0.15, 0.3]]))
    for p, tokens in [(0.4, 1), (0.5, 1), (0.6, 2), (0.8, 2), (0.81, 3), (0.97, 4)]:
        kept = torch.softmax(logits, -1).sort(descending=True).values[0, :tokens]
        kept = kept / kept.sum()
        assert Nucleus(p=p).entropy(logits).item() == pytest.approx(-(kept * kept.log()).sum().item(), abs=1e-6), p


def test_sampled_is_the_negative_log_probability_of_its_token_and_has_the_entropy_as_its_mean():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]])).expand(4, 4)
    sampled = Sampled().entropy(logits, labels=torch.arange(4))
    assert sampled.tolist() == pytest.approx([math.log(2), math.log(4), math.log(8), math.log(8)], abs=1e-6)
    mean = (torch.softmax(logits[0], -1) * sampled).sum().item()
    assert mean == pytest.approx(Full().entropy(logits)[0].item(), abs=1e-6)
    with pytest.raises(ValueError, match="needs the sampled tokens"):
        Sampled().entropy(logits)


@pytest.mark.parametrize("vocabulary", [1, 5])
@pytest.mark.parametrize("row", [[math.nan], [math.inf], [-math.inf]], ids=str)
@pytest.mark.parametrize("measure", [*MEASURES, Sampled()], ids=repr)
def test_a_row_that_is_no_distribution_is_nan_and_the_others_are_as_without_it(measure, row, vocabulary):
    good = torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(0))
    # A NaN or +inf among others, or nothing but -inf.
    bad = torch.full((1, vocabulary), -math.inf) if row == [-math.inf] else good[:1].clone()
    bad[0, -1] = row[0]
    labels = torch.zeros(3).long()

    def both_ways(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = z.clone().requires_grad_()
        entropy = measure.entropy(leaf, labels[: len(z)])
        entropy.sum().backward()
        return entropy.detach(), leaf.grad

    for found, wanted in zip(both_ways(torch.cat([good, bad])), both_ways(good), strict=True):
        assert found[2].isnan().all()
        assert torch.equal(found[:2], wanted)


@pytest.mark.parametrize(
    ("measure", "p"),
    [(Clamped, 1.0), (Clamped, -0.1), (Nucleus, 0.0), (Nucleus, 1.1)],
)
def test_bounds(measure, p):
    with pytest.raises(ValidationError, match=r"1 validation error[^\0]*\np\n"):
        measure(p=p)
