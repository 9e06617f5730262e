"""Log-probs and entropy in one pass, compared with float64 and with the definition of each measure.

With TRITON_INTERPRET=1, set before Triton is imported, the tests run the Triton kernels, interpreted on the CPU.
`test_triton.py` does that.
"""

from __future__ import annotations

import os

import pytest
import torch

from verl_aer.kernels import chunked, logprob_and_entropy
from verl_aer.kernels import logprob_entropy as operation
from verl_aer.kernels.saved_state import CHUNK_BYTES, chunk_rows
from verl_aer.parts.measure import Clamped, Full, Measure, Nucleus, Sampled

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MEASURES = [Full(), Clamped(p=0.3), Clamped(p=0.99), Nucleus(p=0.8)]
# Without a token left out they are what `Full` is.
MEASURES += [] if INTERPRETED else [Clamped(p=0.0), Nucleus(p=1.0)]
ROWS = 6
# The interpreter takes seconds for a choice among so many.
WIDE = 5003 if INTERPRETED else 151_936

# The interpreter is numpy, which warns of what a GPU computes without a word.
no_numbers = pytest.mark.filterwarnings("ignore::RuntimeWarning") if INTERPRETED else lambda test: test
of_the_chunks = pytest.mark.skipif(INTERPRETED, reason="of the PyTorch backend alone")


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    if INTERPRETED:
        from verl_aer.kernels import triton_rows

        chosen = {torch.float64: chunked}
        monkeypatch.setattr(operation, "_backend", lambda logits: chosen.get(logits.dtype, triton_rows))


def logits_of(kind: str, vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocabulary)
    z = torch.randn(ROWS, vocabulary, generator=generator)
    return {
        "normal": 3 * z,
        "flat": 1e-3 * z,
        "peaked": z.scatter(1, torch.arange(ROWS)[:, None] % vocabulary, 60.0),
        "tied": z.round(),
    }[kind]


def reference(
    logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor, measure: Measure
) -> tuple[torch.Tensor, torch.Tensor]:
    z = logits / temperature[:, None]
    return z.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1), measure.entropy(z)


def both_ways(f, logits: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs, entropies, and the gradient of their weighted sum."""
    leaf = logits.clone().requires_grad_()
    log_pi, entropy = f(leaf)
    ((log_pi * weights[0]).sum() + (entropy * weights[1]).sum()).backward()
    return log_pi.detach(), entropy.detach(), leaf.grad


def weights_of(rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, rows, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_close(found: torch.Tensor, wanted: torch.Tensor, relative: float, absolute: float = 0.0) -> None:
    scale = wanted.abs().max().clamp(min=1e-30)
    assert (found.double() - wanted.double()).abs().max() <= relative * scale + absolute


@pytest.mark.parametrize("kind", ["normal", "flat", "peaked", "tied"])
@pytest.mark.parametrize("vocabulary", [1, 2, 5, 257, WIDE])
@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_equal_to_float64(measure, vocabulary, kind):
    if INTERPRETED and vocabulary == WIDE and kind != "normal":
        pytest.skip("a second each")
    logits, temperature = logits_of(kind, vocabulary), torch.linspace(0.5, 2.0, ROWS)
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0, vocabulary - 1, *torch.randint(vocabulary, (ROWS - 2,), generator=generator).tolist()])
    found = both_ways(lambda z: logprob_and_entropy(z, labels, temperature, measure), logits, weights_of(ROWS))
    scaled = logits.double() / temperature[:, None].double()
    wanted = both_ways(
        lambda z: reference(z, labels, torch.ones(ROWS).double(), measure), scaled, weights_of(ROWS).double()
    )
    # What float64 itself loses where one token has nearly all the probability.
    assert_close(found[0], wanted[0], 1e-5, absolute=1e-12)
    assert_close(found[1], wanted[1], 1e-5, absolute=1e-12)
    assert_close(found[2], wanted[2] / temperature[:, None].double(), 1e-5, absolute=1e-12)


@of_the_chunks
@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_gradients_in_float64(measure):
    logits = logits_of("normal", 7).double().requires_grad_()
    labels = torch.tensor([0, 6, 3, 1, 5, 2])
    assert torch.autograd.gradcheck(lambda z: logprob_and_entropy(z, labels, 0.7, measure), (logits,))


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_bfloat16_logits_are_summed_in_float32(measure):
    logits = (3 * torch.randn(ROWS, WIDE, generator=torch.Generator().manual_seed(0))).bfloat16()
    labels = torch.randint(WIDE, (ROWS,), generator=torch.Generator().manual_seed(0))
    found = both_ways(lambda z: logprob_and_entropy(z, labels, 1.0, measure), logits, weights_of(ROWS))
    wanted = both_ways(
        lambda z: reference(z, labels, torch.ones(ROWS).double(), measure),
        logits.double(),
        weights_of(ROWS).double(),
    )
    assert found[0].dtype == found[1].dtype == torch.float32
    assert found[2].dtype == torch.bfloat16
    assert_close(found[1], wanted[1], 0.0, absolute=1e-4)
    # Half a unit in the last of bfloat16's eight digits, and what float32 lost; the interpreter cuts off what hardware
    # rounds.
    half_a_unit = 2.0**-7 if INTERPRETED else 2.0**-8
    assert ((found[2].double() - wanted[2]).abs() <= half_a_unit * wanted[2].abs() + 1e-7).all()


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_excluded_entries_have_no_part_and_no_gradient(measure):
    logits = logits_of("normal", 40)
    excluded = torch.zeros(40).bool()
    excluded[[0, 7, 8, 39]] = True
    labels = torch.full((ROWS,), 3)
    full = both_ways(
        lambda z: logprob_and_entropy(z, labels, 1.0, measure),
        logits.masked_fill(excluded, -torch.inf),
        weights_of(ROWS),
    )
    without = both_ways(
        lambda z: logprob_and_entropy(z, labels - 1, 1.0, measure), logits[:, ~excluded], weights_of(ROWS)
    )
    assert torch.isfinite(full[2]).all()
    assert (full[2][:, excluded] == 0).all()
    assert_close(full[1], without[1], 1e-6)
    assert_close(full[2][:, ~excluded], without[2], 1e-6)


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_columns_beyond_the_tokenizer_have_no_part_in_the_entropy(measure):
    logits, labels = logits_of("normal", 40), torch.arange(ROWS)
    # Columns that are never trained may hold anything, the most likely token of a row too.
    logits[0, 35], logits[1, 30] = 9.0, 20.0
    found = both_ways(lambda z: logprob_and_entropy(z, labels, 1.0, measure, columns=30), logits, weights_of(ROWS))
    wanted = both_ways(
        lambda z: (z.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1), measure.entropy(z[:, :30])),
        logits.double(),
        weights_of(ROWS).double(),
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("weight", [[0] * 6, [0, 1, 0, 0, 2, 0], [1] * 6, [0, 0, 0, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_rows_of_weight_zero_have_no_entropy(measure, weight):
    logits, labels = logits_of("normal", 50), torch.arange(ROWS)
    wanted = torch.tensor(weight) != 0
    found = both_ways(
        lambda z: logprob_and_entropy(z, labels, 1.0, measure, row_weight=torch.tensor(weight).float()),
        logits,
        weights_of(ROWS),
    )
    masked = weights_of(ROWS) * torch.stack([torch.ones(ROWS), wanted.float()])
    whole = both_ways(lambda z: logprob_and_entropy(z, labels, 1.0, measure), logits, masked)
    assert torch.equal(found[0], whole[0])
    assert torch.equal(found[1], whole[1] * wanted)
    assert_close(found[2], whole[2], 1e-6)


@of_the_chunks
def test_rows_of_weight_zero_cost_nothing(monkeypatch):
    measured = []
    measure = chunked._measure
    monkeypatch.setattr(chunked, "_measure", lambda *args: measured.append(len(args[1])) or measure(*args))
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 50 * 2)  # two rows per chunk
    weight = torch.tensor([0.0, 0, 0, 1, 1, 1])
    logprob_and_entropy(logits_of("normal", 50), torch.zeros(6).long(), row_weight=weight)
    assert measured == [1, 2]


@of_the_chunks
@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_nothing_depends_on_the_chunks(measure, monkeypatch):
    logits, labels = logits_of("tied", 50), torch.arange(ROWS)

    def run():
        return both_ways(lambda z: logprob_and_entropy(z, labels, 1.0, measure), logits, weights_of(ROWS))

    whole = run()
    for rows in (1, 4):
        monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 50 * rows)
        for found, wanted in zip(run(), whole, strict=True):
            assert torch.equal(found, wanted)


def test_the_gradient_may_be_written_into_the_logits():
    logits, labels = logits_of("normal", 50), torch.arange(ROWS)
    wanted = both_ways(lambda z: logprob_and_entropy(z, labels), logits, weights_of(ROWS))[2]
    leaf = logits.clone().requires_grad_()
    inner = leaf * 1.0
    seen = []
    inner.register_hook(lambda grad: seen.append((grad.data_ptr(), grad.requires_grad)))
    log_pi, entropy = logprob_and_entropy(inner, labels, inplace=True)
    place = inner.data_ptr()
    (log_pi * weights_of(ROWS)[0] + entropy * weights_of(ROWS)[1]).sum().backward()
    assert seen == [(place, False)]
    assert torch.equal(leaf.grad, wanted)


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_nothing_as_wide_as_the_vocabulary_is_kept_beside_the_logits(measure):
    logits = logits_of("normal", 1000).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        logprob_and_entropy(logits, torch.arange(ROWS), 1.0, measure)
    others = [tensor for tensor in kept if tensor.data_ptr() != logits.data_ptr()]
    assert len(others) < len(kept)
    assert sum(tensor.numel() for tensor in others) <= 10 * ROWS


def test_empty_batches_and_any_strides():
    log_pi, entropy = logprob_and_entropy(torch.zeros(0, 9), torch.zeros(0).long())
    assert log_pi.shape == entropy.shape == (0,)
    wide = logits_of("normal", 50)
    strided = wide.t().contiguous().t()
    assert not strided.is_contiguous()
    labels = torch.arange(ROWS)
    for found, wanted in zip(
        both_ways(lambda z: logprob_and_entropy(z, labels), strided, weights_of(ROWS)),
        both_ways(lambda z: logprob_and_entropy(z, labels), wide, weights_of(ROWS)),
        strict=True,
    ):
        assert torch.equal(found, wanted)


def test_without_a_gradient_nothing_is_kept():
    with torch.no_grad():
        log_pi, entropy = logprob_and_entropy(logits_of("normal", 9).requires_grad_(), torch.arange(ROWS))
    assert not log_pi.requires_grad
    assert not entropy.requires_grad


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"labels \(T,\), got \(6, 9\) and \(5,\)"):
        logprob_and_entropy(torch.zeros(6, 9), torch.zeros(5).long())
    with pytest.raises(ValueError, match="does not support the measure 'sampled'"):
        logprob_and_entropy(torch.zeros(6, 9), torch.zeros(6).long(), measure=Sampled())


@of_the_chunks
def test_on_another_device_nothing_is_computed_slowly():
    logits, labels = torch.zeros(6, 9, device="meta"), torch.zeros(6, device="meta").long()
    with pytest.raises(ValueError, match="computed on cpu and cuda tensors, but the logits are on meta"):
        logprob_and_entropy(logits, labels)


@of_the_chunks
def test_a_chunk_on_a_gpu_is_hundreds_of_rows(monkeypatch):
    logits = torch.zeros(6, 151_936, device="meta")
    for device, rows in (("cpu", range(1, 10)), ("cuda", range(200, 1000))):
        monkeypatch.setitem(CHUNK_BYTES, "meta", CHUNK_BYTES[device])
        assert chunk_rows(logits) in rows


def test_float16_logits_are_told_apart():
    logits = logits_of("normal", 3000).half()
    labels = torch.arange(ROWS)
    for measure in MEASURES:
        found = both_ways(lambda z, f=measure: logprob_and_entropy(z, labels, 1.0, f), logits, weights_of(ROWS))
        wanted = both_ways(
            lambda z, f=measure: reference(z, labels, torch.ones(ROWS).double(), f),
            logits.double(),
            weights_of(ROWS).double(),
        )
        assert_close(found[1], wanted[1], 1e-5)
        assert ((found[2].double() - wanted[2]).abs() <= 2.0**-11 * wanted[2].abs() + 1e-7).all()


def spoiled(logits: torch.Tensor, how: str) -> torch.Tensor:
    """Row 2 is no distribution."""
    logits = logits.clone()
    if how == "all NaN":
        logits[2] = torch.nan
    elif how == "all -inf":
        logits[2] = -torch.inf
    else:
        logits[2, -1] = float(how)
    return logits


SPOILED = ["nan", "inf", "all -inf"] + ([] if INTERPRETED else ["all NaN"])
OTHERS = [0, 1, 3, 4, 5]


@no_numbers
@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("vocabulary", [50] if INTERPRETED else [1, 2, 50])
@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_a_row_that_is_no_distribution_is_nan_and_the_others_are_as_without_it(measure, vocabulary, how):
    logits, labels = logits_of("normal", vocabulary), torch.arange(ROWS) % vocabulary

    def f(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logprob_and_entropy(z, labels, torch.linspace(0.5, 2.0, ROWS), measure)

    wanted = both_ways(f, logits, weights_of(ROWS))
    found = both_ways(f, spoiled(logits, how), weights_of(ROWS))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours[2].isnan().all()
        assert torch.equal(ours[OTHERS], theirs[OTHERS])


@no_numbers
@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_a_row_that_is_no_distribution_and_that_nobody_reads_has_a_gradient_of_zero(measure, how):
    logits, labels = logits_of("normal", 50), torch.arange(ROWS)
    weights = weights_of(ROWS)
    weights[:, 2] = 0
    # Its entropy is not even computed.
    row_weight = torch.ones(ROWS).index_fill(0, torch.tensor(2), 0)
    for of_row in (None, row_weight):
        leaf = spoiled(logits, how).requires_grad_()
        log_pi, entropy = logprob_and_entropy(leaf, labels, 1.0, measure, of_row)
        assert log_pi[2].isnan()
        assert entropy[2].isnan() if of_row is None else entropy[2] == 0
        # Not 0 * NaN, which is NaN.
        (log_pi[OTHERS] * weights[0, OTHERS] + entropy[OTHERS] * weights[1, OTHERS]).sum().backward()
        assert (leaf.grad[2] == 0).all()
        wanted = both_ways(lambda z: logprob_and_entropy(z, labels, 1.0, measure), logits, weights)[2]
        assert torch.equal(leaf.grad[OTHERS], wanted[OTHERS])


@no_numbers
@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_without_a_token_among_the_columns_only_the_entropy_is_nan(measure):
    logits, labels = logits_of("normal", 50), torch.full((ROWS,), 40)
    logits[2, :30] = -torch.inf
    leaf = logits.clone().requires_grad_()
    log_pi, entropy = logprob_and_entropy(leaf, labels, 1.0, measure, columns=30)
    torch.testing.assert_close(log_pi[2], logits[2].log_softmax(-1)[40])
    assert entropy.isnan().tolist() == [False, False, True, False, False, False]
    log_pi.sum().backward()
    assert leaf.grad.isfinite().all()


def test_a_row_that_nobody_reads_has_a_gradient_of_zero():
    logits = logits_of("normal", 50)
    weights = weights_of(ROWS)
    weights[:, 3] = 0
    weights[0, 4] = weights[1, 5] = 0
    grad = both_ways(lambda z: logprob_and_entropy(z, torch.arange(ROWS)), logits, weights)[2]
    assert (grad[3] == 0).all()
    assert (grad[[0, 1, 2, 4, 5]] != 0).any(-1).all()


@pytest.mark.slow
def test_more_elements_than_an_int_can_count():
    rows, vocabulary = 14_200, 151_936
    assert rows * vocabulary > 2**31
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16)
    logits[-1, -1] = 8.0
    log_pi, entropy = logprob_and_entropy(logits, torch.full((rows,), vocabulary - 1))
    expected = both_ways(
        lambda z: logprob_and_entropy(z, torch.tensor([vocabulary - 1])), logits[-1:].float(), weights_of(1)
    )
    assert log_pi[-1] == pytest.approx(expected[0].item(), rel=1e-6)
    assert entropy[-1] == pytest.approx(expected[1].item(), rel=1e-6)
    assert (entropy[:-1] == entropy[0]).all()
