"""PyTorch backend, for a CPU or a GPU: processes chunks of rows in place, each small enough to stay in a cache.

The implementation is chosen to be fast on a CPU too. Masks are multiplied as floats because masked_fill is many times
slower there; sums of products use mul and sum instead of einsum for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from verl_aer.kernels.saved_state import KernelSettings, SavedRows, chunk_rows
from verl_aer.kernels.token_subset import Kept, choose, mask_of

Rows = slice | torch.Tensor
"""A selection of rows, as a slice or as indices."""


def forward(
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: torch.Tensor,
    wanted: torch.Tensor,
    settings: KernelSettings,
) -> tuple[torch.Tensor, SavedRows]:
    """Compute the ``(T,)`` log-probabilities and the state for the backward pass."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    state = SavedRows.empty(len(logits), dtype, logits.device)
    log_pi = torch.empty_like(state.top)
    keeps_all = settings.keeps_all(logits.shape[-1])
    for rows, (x, others, mask) in _chunks(logits, dtype, buffers=2 if keeps_all else 3):
        x.copy_(logits[rows])
        best = x.max(dim=-1)
        # NaN for a row of only -inf or with +inf; all later values of the row are then NaN too.
        state.top[rows] = best.values.masked_fill(best.values.isinf(), torch.nan)
        some = wanted[rows].nonzero().squeeze(-1)
        here, part = (rows, slice(None)) if len(some) == len(x) else (some + rows.start, some)
        if len(some) and not keeps_all:
            kept = choose(settings, x[part], temperature[here])
            state.threshold[here], state.cut[here] = kept
            mask = mask_of(settings, x[part], kept, out=mask[: len(some)])
        y = x.sub_(state.top[rows, None]).div_(temperature[rows, None])
        log_pi[rows] = y.gather(-1, labels[rows, None]).squeeze(-1)
        torch.exp(y, out=others).scatter_(-1, best.indices[:, None], 0.0)  # e^y, 0 at the most likely token
        state.log_z[rows] = others.sum(dim=-1).log1p()
        if len(some):
            mask = None if keeps_all else mask
            state.log_zk[here], state.mean_y[here] = _measure(y[part], others[part], best.indices[part], mask)
    return log_pi.sub_(state.log_z), state


def backward(
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: torch.Tensor,
    state: SavedRows,
    settings: KernelSettings,
    grad_log_pi: torch.Tensor,
    grad_entropy: torch.Tensor,
    grad: torch.Tensor,
) -> None:
    """Write the gradient of ``sum(grad_log_pi * log_pi + grad_entropy * entropy)`` into ``grad``."""
    keeps_all = settings.keeps_all(logits.shape[-1])
    for rows, (x, pi, mask) in _chunks(logits, state.top.dtype, buffers=2 if keeps_all else 3):
        if not (grad_log_pi[rows].any() or grad_entropy[rows].any()):
            grad[rows] = 0.0
            continue
        x.copy_(logits[rows])
        pulled = grad_entropy[rows].nonzero().squeeze(-1)
        here, part = (rows, slice(None)) if len(pulled) == len(x) else (pulled + rows.start, pulled)
        if len(pulled) and not keeps_all:
            kept = Kept(state.threshold[here], state.cut[here])
            mask = mask_of(settings, x[part], kept, out=mask[: len(pulled)])
        y = x.sub_(state.top[rows, None]).div_(temperature[rows, None])
        torch.sub(y, state.log_z[rows, None], out=pi).exp_()
        scale = -1.0 / temperature[rows, None]
        # g_log_pi + g_H * (pi~_j / pi_j) * (y_j - E_K[y]), the second term only on the kept tokens
        if not len(pulled):
            pi.mul_(scale.mul_(grad_log_pi[rows, None]))
        else:
            of_entropy = grad_entropy[here] * (state.log_z[here] - state.log_zk[here]).exp()
            pull = _finite(y[part]).sub_(state.mean_y[here, None]).mul_(of_entropy[:, None])
            pull = pull if keeps_all else pull.mul_(mask)
            pull.add_(grad_log_pi[here, None]).mul_(scale[part])
            # In place if these are all rows.
            some = pi[part].mul_(pull)
            if len(pulled) < len(x):
                pi.mul_(scale.mul_(grad_log_pi[rows, None]))
                pi[part] = some
        at_label = (grad_log_pi[rows] / temperature[rows])[:, None]
        grad[rows] = pi.scatter_add_(-1, labels[rows, None], at_label.to(pi.dtype))
    # Without this, 0 * NaN gives NaN for a row that is no distribution and whose result is not used.
    grad[state.top.isnan() & (grad_log_pi == 0) & (grad_entropy == 0)] = 0.0


def _chunks(
    logits: torch.Tensor, dtype: torch.dtype, buffers: int
) -> Iterator[tuple[slice, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Yield slices of rows whose float32 copy is about CHUNK_BYTES, and three buffers; with 2 the third is empty."""
    size = chunk_rows(logits)
    memory = logits.new_empty(buffers, min(size, len(logits)), logits.shape[-1], dtype=dtype)
    for start in range(0, len(logits), size):
        rows = slice(start, min(start + size, len(logits)))
        work = memory[:, : rows.stop - rows.start]
        yield rows, (work[0], work[1], work[2] if buffers > 2 else memory[0, :0])


def _measure(
    y: torch.Tensor, others: torch.Tensor, best: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute log Z_K and E_K[y]; overwrites ``y`` and ``others``.

    others: e^y, 0 at the most likely token, whose index is best. mask: 1 at the tokens K; None for all tokens.
    """
    shift = torch.zeros_like(y[:, 0])
    if mask is not None:
        others.mul_(mask)
        # The most likely token may be excluded: one of several equal tokens, or a column outside the tokenizer.
        lost = (mask.gather(-1, best[:, None]).squeeze(-1) == 0).nonzero().squeeze(-1)
        if len(lost):
            z = y[lost].masked_fill_(mask[lost] == 0, -torch.inf)
            first = z.max(dim=-1)
            shift[lost] = first.values
            y[lost] = z.sub_(first.values[:, None])
            others[lost] = z.exp_().scatter_(-1, first.indices[:, None], 0.0)
    log_z = others.sum(dim=-1).log1p()
    mean_y = _finite(y).mul_(others).sum(dim=-1) / log_z.exp()
    return log_z + shift, mean_y + shift


def _finite(y: torch.Tensor) -> torch.Tensor:
    """Clamp y at -10000 in place: 0 * -inf would be NaN, and e^-10000 is 0 in every floating type."""
    return y.clamp_(min=-1e4)
