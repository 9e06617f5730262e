"""The benchmarks: their substitutes for veRL equal veRL, and every line of a table is measured."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from verl.utils import torch_functional as theirs

from benchmarks import logits, precision
from benchmarks import timing as meter
from benchmarks import torch_reference as plain


@pytest.mark.parametrize("name", ["logprobs_from_logits", "entropy_from_logits", "entropy_from_logits_with_chunking"])
def test_what_stands_in_for_verl_is_equal_to_it(name):
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(7, 50, generator=generator)
    more = (torch.arange(7),) if name.startswith("logprobs") else ()
    torch.testing.assert_close(getattr(plain, name)(z, *more), getattr(theirs, name)(z, *more), rtol=1e-5, atol=1e-6)


def test_clamped_by_topk_is_the_measure_that_ours_is_compared_on():
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(7, 50, generator=generator)
    torch.testing.assert_close(logits.clamped_by_topk(z), logits.Clamped().entropy(z))


def test_a_table_has_a_line_for_each_pass(monkeypatch):
    monkeypatch.setattr(logits, "REPEATS", 1)
    lines = [line for line in logits.measure(8, 64, torch.float32).splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0][2:] for line in lines] == list(logits.PASSES)
    assert lines[0].split(" | ")[3] == "1.000"
    assert all(float(line.split(" | ")[1]) > 0 for line in lines)


def test_what_stands_in_for_cudas_autocast_takes_the_same_operations_in_float32():
    # Under a mode that computes types only, which needs no GPU.
    with FakeTensorMode():
        fake = torch.empty(7, 50, dtype=torch.bfloat16, device="cuda")
        torch.set_autocast_enabled("cuda", True)
        try:
            on_a_gpu = torch.softmax(fake, -1), torch.logsumexp(fake, -1), fake.sum(-1)
            softmax = torch.nn.functional.softmax(fake, -1)
            divided = fake / 0.8
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert [one.dtype for one in (*on_a_gpu, softmax)] == [torch.float32] * 4
    assert divided.dtype == torch.bfloat16
    z = (3 * torch.randn(7, 50, generator=torch.Generator().manual_seed(0))).bfloat16()
    with precision.CudaAutocast():
        assert theirs.entropy_from_logits(z).dtype == torch.float32
    torch.testing.assert_close(precision.under_autocast(z, 1.0), theirs.entropy_from_logits(z.float()))


def test_memory_is_that_of_the_call():
    size = 2**26
    costs = meter.interleaved({"one": lambda: meter.timed(lambda: torch.ones(size, dtype=torch.uint8))}, repeats=1)
    assert costs["one"].extra_bytes == pytest.approx(size, rel=0.1)
    assert len(costs["one"].seconds) == 1


def test_a_path_that_needs_more_memory_than_there_is_has_no_numbers():
    def greedy() -> float:
        raise torch.cuda.OutOfMemoryError

    costs = meter.interleaved({"base": lambda: 1.0, "greedy": greedy}, repeats=2)
    text = meter.table(costs, "base", 1, "memory")
    assert "| greedy | out of memory |  |  |  |" in text
    assert costs["base"].seconds == [1.0, 1.0]
