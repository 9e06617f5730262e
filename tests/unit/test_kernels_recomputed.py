"""The entropy of a user-defined measure equals that of all rows at once, computed in chunks."""

from __future__ import annotations

import pytest
import torch
from pydantic import PrivateAttr
from torch.utils._python_dispatch import TorchDispatchMode

from verl_aer.kernels import recomputed_entropy
from verl_aer.kernels.saved_state import CHUNK_BYTES
from verl_aer.parts.measure import Measure

ROWS, VOCABULARY, PER_CHUNK = 23, 50, 4


class Collision(Measure):
    """H = -log sum_v pi_v^2, with a note of each call."""

    kind = "collision"

    _calls: list[tuple[int, torch.dtype, bool]] = PrivateAttr(default_factory=list)

    @property
    def calls(self) -> list[tuple[int, torch.dtype, bool]]:
        return self._calls

    def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        self.calls.append((len(logits), logits.dtype, torch.is_grad_enabled()))
        return -torch.logsumexp(2 * torch.log_softmax(logits, dim=-1), dim=-1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * VOCABULARY * PER_CHUNK)


def logits_of(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(0))).to(dtype)


TEMPERATURE = torch.linspace(0.5, 2.0, ROWS)
WEIGHTS = torch.randn(ROWS, generator=torch.Generator().manual_seed(1))
SOME = (torch.arange(ROWS) % 3 == 1).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [None, 37])
@pytest.mark.parametrize("row_weight", [None, SOME], ids=["all rows", "some rows"])
def test_equal_to_all_rows_at_once(row_weight, columns, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    leaf, whole = (logits_of(dtype).requires_grad_() for _ in range(2))
    found = recomputed_entropy(Collision(), leaf, TEMPERATURE, row_weight, columns)
    wanted = Collision().entropy((whole.to(wide) / TEMPERATURE[:, None])[:, :columns])
    wanted = wanted if row_weight is None else torch.where(row_weight != 0, wanted, 0.0)
    (found * WEIGHTS).sum().backward()
    (wanted * WEIGHTS).sum().backward()
    assert found.dtype == wide
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(leaf.grad, whole.grad, rtol=1e-6, atol=1e-7)


def test_only_rows_that_are_read_are_given_to_it_and_never_more_than_a_chunk():
    measure, leaf = Collision(), logits_of(torch.bfloat16).requires_grad_()
    entropy = recomputed_entropy(measure, leaf, TEMPERATURE, SOME)
    counted = int(SOME.sum())
    assert measure.calls == [(4, torch.float32, False), (counted - 4, torch.float32, False)]
    measure.calls.clear()
    # Of the rows that were computed, the loss reads one.
    first = int(SOME.nonzero()[0])
    entropy[first].backward()
    assert measure.calls == [(1, torch.float32, True)]
    assert (leaf.grad != 0).any(dim=-1).nonzero().squeeze(-1).tolist() == [first]


def test_without_a_row_that_is_read_it_is_not_called():
    measure = Collision()
    entropy = recomputed_entropy(measure, logits_of().requires_grad_(), TEMPERATURE, torch.zeros(ROWS))
    assert measure.calls == []
    assert torch.equal(entropy, torch.zeros(ROWS))
    assert not entropy.requires_grad
    assert recomputed_entropy(measure, torch.zeros(0, 9)).shape == (0,)
    assert measure.calls == []


class Sizes(TorchDispatchMode):
    """Numbers of each tensor that an operation makes, and the type."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        results = result if isinstance(result, tuple | list) else (result,)
        self.made += [(one.numel(), one.dtype) for one in results if isinstance(one, torch.Tensor)]
        return result


def test_the_largest_temporary_is_a_chunk_beside_one_gradient_in_the_type_of_the_logits():
    leaf = logits_of(torch.bfloat16).requires_grad_()
    chunk = PER_CHUNK * VOCABULARY
    with Sizes() as forward:
        entropy = recomputed_entropy(Collision(), leaf, TEMPERATURE)
    assert max(numbers for numbers, _ in forward.made) == chunk
    with Sizes() as backward:
        entropy.sum().backward()
    # The gradient, which each chunk's is written into.
    assert {made for made in backward.made if made[0] > chunk} == {(ROWS * VOCABULARY, torch.bfloat16)}
    assert (chunk, torch.float32) in backward.made


def test_nothing_as_wide_as_the_vocabulary_is_kept_beside_the_logits():
    leaf, kept = logits_of().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        recomputed_entropy(Collision(), leaf, TEMPERATURE)
    others = [tensor for tensor in kept if tensor.data_ptr() != leaf.data_ptr()]
    assert len(others) < len(kept)
    assert sum(tensor.numel() for tensor in others) <= 2 * ROWS


def test_autocast_does_not_narrow_it():
    class Product(Collision):
        def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return super().entropy(logits @ torch.eye(VOCABULARY))

    wanted = recomputed_entropy(Product(), logits_of())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(recomputed_entropy(Product(), logits_of()), wanted)


@pytest.mark.parametrize("row", [[torch.nan], [torch.inf], [-torch.inf] * VOCABULARY], ids=["nan", "inf", "all -inf"])
def test_a_row_that_is_no_distribution_is_nan_whatever_the_measure_says(row):
    class Largest(Measure):
        kind = "largest"

        def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return logits.nan_to_num().softmax(dim=-1).amax(dim=-1)

    logits = logits_of()
    wanted = recomputed_entropy(Largest(), logits)
    logits[5, : len(row)] = torch.tensor(row)
    found = recomputed_entropy(Largest(), logits)
    assert found.isnan().nonzero().squeeze(-1).tolist() == [5]
    assert torch.equal(found[:5], wanted[:5])
    assert torch.equal(found[6:], wanted[6:])


def test_what_does_not_fit_is_refused():
    class Mean(Collision):
        kind = "mean"

        def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return super().entropy(logits).mean()

    class Constant(Collision):
        kind = "constant"

        def entropy(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return super().entropy(logits.detach())

    with pytest.raises(ValueError, match=r"'mean' must return one entropy per row, \(4,\) for logits of \(4, 50\)"):
        recomputed_entropy(Mean(), logits_of())
    with pytest.raises(ValueError, match="'constant' has no gradient"):
        recomputed_entropy(Constant(), logits_of().requires_grad_()).sum().backward()
    with pytest.raises(ValueError, match="the logits are on meta"):
        recomputed_entropy(Collision(), logits_of().to("meta"))
