"""The set of tokens that a measure keeps, stored as two numbers per row.

    clamped   K = {j : logit_j > threshold}, and the tokens with logit_j = threshold and j > cut
    nucleus   K = {j : logit_j > threshold}, and the tokens with logit_j = threshold and j <= cut

In nearly all rows, either all or none of the tokens at the threshold are kept; cut is then the length of the row.

The backward pass reconstructs the set from the two numbers, so no mask as wide as the vocabulary is saved. The set is
chosen from the logits before the division by the temperature, which may make two logits equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from verl_aer.kernels.saved_state import KernelSettings, leaves_none_out
from verl_aer.parts.measure import Clamped, Nucleus


class Kept(NamedTuple):
    """The kept set of each row: threshold, ``(T,)`` logits, and cut, ``(T,)`` int64 indices of the vocabulary."""

    threshold: torch.Tensor
    cut: torch.Tensor


def choose(settings: KernelSettings, logits: torch.Tensor, temperature: torch.Tensor) -> Kept:
    """Choose the kept set of each row.

    logits: ``(T, V)``, float32 or float64. temperature: ``(T,)``.
    """
    measure, logits = settings.measure, logits[:, : settings.columns]
    rows, vocabulary = logits.shape
    if leaves_none_out(measure):
        return Kept(logits.new_full((rows,), -torch.inf), torch.full((rows,), vocabulary, device=logits.device))
    no_distribution = (~logits.amax(dim=-1).isfinite()).nonzero().squeeze(-1)
    if len(no_distribution):
        # Its entropy is NaN for any set, and a NaN cannot be ordered.
        logits = logits.index_fill(0, no_distribution, 0.0)
    if isinstance(measure, Clamped):
        return _above_the_lowest(logits, measure.p)
    assert isinstance(measure, Nucleus)
    return _nucleus(logits, temperature, measure.p)


def mask_of(settings: KernelSettings, logits: torch.Tensor, kept: Kept, out: torch.Tensor) -> torch.Tensor:
    """Write the mask of the sets ``kept`` into ``out``, ``(T, V)``: 1 at kept tokens, 0 elsewhere.

    logits: the logits that the sets were chosen from.
    """
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
    """Exclude the k = floor(p * V) lowest tokens, of equal ones the lower index first; V does not count -inf."""
    rows, vocabulary = logits.shape
    excluded = torch.zeros(rows, dtype=torch.long, device=logits.device)
    holed = torch.isneginf(logits.amin(dim=-1)).nonzero().squeeze(-1)
    if len(holed):
        excluded[holed] = torch.isneginf(logits[holed]).sum(dim=-1)
    # In float64, as in Python: floor(p * V) must not depend on the type of the logits.
    k = (p * (vocabulary - excluded).double()).floor().long() + excluded
    threshold = torch.full_like(logits[:, 0], -torch.inf)
    cut = torch.full_like(k, vocabulary)
    for size in k.unique().tolist():
        same = (k == size).nonzero().squeeze(-1)
        if size > 0:
            threshold[same], cut[same] = _lowest(size, logits if len(same) == rows else logits[same])
    return Kept(threshold, cut)


def _lowest(k: int, logits: torch.Tensor) -> Kept:
    """Return the k-th lowest value of each row, and the last index of a token of this value among the k lowest."""
    threshold = _kth_value(k, logits)
    # As floats, which are summed faster than bools.
    number = torch.empty_like(logits)
    wanted = k - torch.lt(logits, threshold[:, None], out=number).sum(dim=-1).long()
    tied = torch.eq(logits, threshold[:, None], out=number)
    return Kept(threshold, _index_of(tied, wanted))


def _kth_value(k: int, logits: torch.Tensor) -> torch.Tensor:
    """Return the k-th lowest value of each row by selection, without sorting."""
    if logits.device.type == "cpu":
        # Vectorized; many times faster than torch.kthvalue.
        return torch.from_numpy(np.partition(logits.numpy(), k - 1, axis=-1)[:, k - 1].copy())
    return logits.kthvalue(k, dim=-1).values


def _index_of(tied: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return the index of the ``count``-th 1 of each row, or the row's length if ``count`` is the number of ones."""
    index = torch.full_like(count, tied.shape[-1])
    for row in (count != tied.sum(dim=-1)).nonzero().squeeze(-1).tolist():
        index[row] = tied[row].nonzero()[count[row] - 1, 0]
    return index


def _nucleus(logits: torch.Tensor, temperature: torch.Tensor, p: float) -> Kept:
    """Choose the fewest most likely tokens of mass p, of equal ones the lower index first.

    Only likely tokens are sorted: all tokens of pi < (1 - p) / V together have less mass than 1 - p, so the set never
    needs them.
    """
    # In float64: the error of float32 sums over a large vocabulary would shift the set by whole tokens.
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
