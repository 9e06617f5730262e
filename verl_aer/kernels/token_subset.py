"""Which tokens of the vocabulary a measure keeps, remembered as two numbers a row.

    clamped   K = {j : logit_j > threshold} and those of equal logit whose index is above cut
    nucleus   K = {j : logit_j > threshold} and those of equal logit whose index is at most cut

Where all tokens of equal logit have the same fate, which is nearly everywhere, cut is the length of the row.

The numbers are enough to find the same set again in the backward pass; a mask as wide as the vocabulary is not kept.
They are chosen by the logits as they came: dividing by the temperature may make two of them equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from verl_aer.kernels.saved_state import Settings, leaves_none_out
from verl_aer.parts.measure import Clamped


class Kept(NamedTuple):
    """threshold: ``(T,)``, a logit. cut: ``(T,)`` int64, an index of the vocabulary."""

    threshold: torch.Tensor
    cut: torch.Tensor


def choose(settings: Settings, logits: torch.Tensor, temperature: torch.Tensor) -> Kept:
    """The kept set of each row.

    logits: ``(T, V)``, float32 or float64. temperature: ``(T,)``.
    """
    measure, logits = settings.measure, logits[:, : settings.columns]
    rows, vocabulary = logits.shape
    if leaves_none_out(measure):
        return Kept(logits.new_full((rows,), -torch.inf), torch.full((rows,), vocabulary, device=logits.device))
    no_distribution = (~logits.amax(dim=-1).isfinite()).nonzero().squeeze(-1)
    if len(no_distribution):
        # Its entropy is NaN whatever is kept, and a NaN has no place in an order.
        logits = logits.index_fill(0, no_distribution, 0.0)
    if isinstance(measure, Clamped):
        return _above_the_lowest(logits, measure.p)
    return _nucleus(logits, temperature, measure.p)


def mask_of(settings: Settings, logits: torch.Tensor, kept: Kept, out: torch.Tensor) -> torch.Tensor:
    """``out``, 1 at the tokens of the sets that ``choose`` found for the same logits and 0 elsewhere, ``(T, V)``."""
    clamped = isinstance(settings.measure, Clamped)
    until, after = (torch.gt, torch.ge) if clamped else (torch.ge, torch.gt)
    threshold, vocabulary = kept.threshold[:, None], logits.shape[-1]
    until(logits, threshold, out=out)
    for row in (kept.cut < vocabulary).nonzero().squeeze(-1).tolist():
        begin = int(kept.cut[row]) + 1
        after(logits[row, begin:], threshold[row], out=out[row, begin:])
    if settings.columns is not None:
        out[:, settings.columns :] = 0.0
    return out


def _above_the_lowest(logits: torch.Tensor, p: float) -> Kept:
    """Without the k = floor(p * V) lowest, of equal ones those of lower index first; -inf counts for nothing in V."""
    rows, vocabulary = logits.shape
    excluded = torch.zeros(rows, dtype=torch.long, device=logits.device)
    holed = torch.isneginf(logits.amin(dim=-1)).nonzero().squeeze(-1)
    if len(holed):
        excluded[holed] = torch.isneginf(logits[holed]).sum(dim=-1)
    # In float64, as Python counts: floor(p * V) must not depend on the logits' type.
    k = (p * (vocabulary - excluded).double()).floor().long() + excluded
    threshold = torch.full_like(logits[:, 0], -torch.inf)
    cut = torch.full_like(k, vocabulary)
    for size in k.unique().tolist():
        same = (k == size).nonzero().squeeze(-1)
        if size > 0:
            threshold[same], cut[same] = _lowest(size, logits if len(same) == rows else logits[same])
    return Kept(threshold, cut)


def _lowest(k: int, logits: torch.Tensor) -> Kept:
    """The k-th lowest value of each row, and the index up to which tokens of this value are among the k."""
    threshold = _kth_value(k, logits)
    # As numbers, which are summed faster than bools.
    number = torch.empty_like(logits)
    wanted = k - torch.lt(logits, threshold[:, None], out=number).sum(dim=-1).long()
    tied = torch.eq(logits, threshold[:, None], out=number)
    return Kept(threshold, _index_of(tied, wanted))


def _kth_value(k: int, logits: torch.Tensor) -> torch.Tensor:
    """By selection: rows are not sorted."""
    if logits.device.type == "cpu":
        # Vectorised, many times as fast as torch.kthvalue.
        return torch.from_numpy(np.partition(logits.numpy(), k - 1, axis=-1)[:, k - 1].copy())
    return logits.kthvalue(k, dim=-1).values


def _index_of(tied: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The index of the ``count``-th 1 of each row; the row's length where all of them are meant."""
    index = torch.full_like(count, tied.shape[-1])
    for row in (count != tied.sum(dim=-1)).nonzero().squeeze(-1).tolist():
        index[row] = tied[row].nonzero()[count[row] - 1, 0]
    return index


def _nucleus(logits: torch.Tensor, temperature: torch.Tensor, p: float) -> Kept:
    """The fewest most likely tokens of mass p, of equal ones those of lower index first.

    Only the likely ones are ordered: all tokens of pi < (1 - p) / V have less than 1 - p together, so none of them is
    needed.
    """
    # In float64: in float32 the sums over a large vocabulary are off by whole tokens.
    top = logits.amax(dim=-1, keepdim=True)
    e = (logits.double() - top).div_(temperature[:, None]).exp_()
    total = e.sum(dim=-1, keepdim=True)
    likely = int((e >= total * ((1 - p) / logits.shape[-1])).sum(dim=-1).max())
    ordered = logits.topk(likely, dim=-1).values
    pi = (ordered.double() - top).div_(temperature[:, None]).exp_() / total
    last = ((pi.cumsum(dim=-1) - pi) < p).sum(dim=-1, keepdim=True) - 1
    threshold = ordered.gather(-1, last).squeeze(-1)
    above = (logits > threshold[:, None]).sum(dim=-1)
    tied = (logits == threshold[:, None]).to(logits.dtype)
    return Kept(threshold, _index_of(tied, last.squeeze(-1) + 1 - above))
