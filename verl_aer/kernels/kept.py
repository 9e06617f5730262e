"""Which tokens of the vocabulary a functional keeps, remembered as two numbers a row.

    clamped   K = {j : y_j > threshold} and those of equal y whose index is above cut
    nucleus   K = {j : y_j > threshold} and those of equal y whose index is at most cut

The numbers are enough to find the same set again in the backward pass; a mask as wide as the vocabulary is not kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from verl_aer.functional import Clamped, Functional, Nucleus


class Kept(NamedTuple):
    """threshold: ``(T,)``, of y = z - max z. cut: ``(T,)`` int64, an index of the vocabulary."""

    threshold: torch.Tensor
    cut: torch.Tensor


def keeps_all(functional: Functional) -> bool:
    """Whether no token is ever left out."""
    if isinstance(functional, Clamped):
        return functional.p == 0
    return not isinstance(functional, Nucleus) or functional.p >= 1


def choose(functional: Functional, y: torch.Tensor) -> Kept:
    """The kept set of each row of ``y``, ``(T, V)``."""
    if isinstance(functional, Clamped):
        return _above_the_lowest(y, functional.p)
    if keeps_all(functional):
        rows, vocabulary = y.shape
        return Kept(y.new_full((rows,), -torch.inf), torch.full((rows,), vocabulary, device=y.device))
    return _nucleus(y, functional.p)


def left_out(functional: Functional, y: torch.Tensor, kept: Kept, columns: int | None) -> torch.Tensor:
    """``(T, V)`` bool: outside the kept sets that ``choose`` found for the first ``columns`` of the same ``y``."""
    index = torch.arange(y.shape[-1], device=y.device)
    threshold, cut = kept.threshold[:, None], kept.cut[:, None]
    tied = y == threshold
    tied &= (index <= cut) if isinstance(functional, Clamped) else (index > cut)
    outside = tied.logical_or_(y < threshold)
    outside[:, columns if columns is not None else len(index) :] = True
    return outside


def _above_the_lowest(y: torch.Tensor, p: float) -> Kept:
    """Without the k = floor(p * V) lowest, of equal ones those of lower index first; -inf counts for nothing in V."""
    vocabulary = y.shape[-1]
    excluded = torch.isneginf(y).sum(dim=-1)
    # In float64, as Python counts: floor(p * V) must not depend on the logits' type.
    k = (p * (vocabulary - excluded).double()).floor().long() + excluded
    threshold = torch.full_like(y[:, 0], -torch.inf)
    for size in k.unique().tolist():
        rows = k == size
        if size > 0:
            threshold[rows] = y[rows].kthvalue(size, dim=-1).values
    wanted = k - (y < threshold[:, None]).sum(dim=-1)
    return Kept(threshold, _index_of(y == threshold[:, None], wanted))


def _index_of(tied: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The index of the ``count``-th True of each row; -1 for none, the last index where all of them are meant."""
    rows, vocabulary = tied.shape
    index = torch.full((rows,), vocabulary - 1, device=tied.device)
    partly = count != tied.sum(dim=-1)
    if partly.any():
        reached = tied[partly].cumsum(dim=-1) >= count[partly, None]
        index[partly] = reached.int().argmax(dim=-1)
    index[count == 0] = -1
    return index


def _nucleus(y: torch.Tensor, p: float) -> Kept:
    """The fewest most likely tokens of mass p, of equal ones those of lower index first."""
    ordered, order = y.sort(dim=-1, descending=True, stable=True)
    # In float64: in float32 the sums over a large vocabulary are off by whole tokens.
    pi = torch.softmax(ordered.double(), dim=-1)
    last = ((pi.cumsum(dim=-1) - pi) < p).sum(dim=-1, keepdim=True) - 1
    return Kept(ordered.gather(-1, last).squeeze(-1), order.gather(-1, last).squeeze(-1))
