"""One operation for the two things that a policy update wants of the logits.

    log pi(label) = y_label - log Z,         y = z - max z,  Z = sum_v e^{y_v},  z = logits / temperature
    H             = log Z_K - E_K[y],        over the kept tokens K: all of them, or those of the functional

    d log pi / dz_j = 1[j = label] - pi_j
    d H / dz_j      = -pi~_j (y_j - E_K[y])  for j in K, else 0

Separately, each of the two reads the logits, writes temporaries as wide as the vocabulary and keeps one of them alive
for its backward pass. Here each way reads them once, in chunks of rows that are worked on in float32, and between the
two ways only a few numbers a token are kept beside the logits themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from verl_aer.functional import Clamped, Full, Functional, Nucleus
from verl_aer.kernels.kept import Kept, choose, keeps_all, left_out

CHUNK_BYTES = 2**24
"""Of one float32 temporary: what a chunk of rows may take, whatever the vocabulary."""

FUNCTIONALS = (Full, Clamped, Nucleus)
"""What has a rule here; another functional is computed by its own ``entropy``."""

FULL = Full()

Rows = slice | torch.Tensor
"""Rows of the whole, in one piece or by their numbers."""


@dataclass(frozen=True)
class _Settings:
    functional: Functional
    columns: int | None
    inplace: bool

    def keeps_all(self, y: torch.Tensor) -> bool:
        """Whether no token of the vocabulary is ever left out."""
        return keeps_all(self.functional) and (self.columns is None or self.columns >= y.shape[-1])


def logprob_and_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    functional: Functional = FULL,
    row_weight: torch.Tensor | None = None,
    columns: int | None = None,
    inplace: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi(label) and entropy of each row, differentiable in the logits.

    Args:
        logits: ``(T, V)``, any floating type; -inf excludes an entry. Sums are in float32, or float64 for float64.
        labels: ``(T,)`` int64.
        temperature: > 0, a number or ``(T,)``.
        functional: one of FUNCTIONALS.
        row_weight: ``(T,)``; a row of weight 0 has entropy 0 and costs none, in either pass. None: all rows have one.
        columns: of the vocabulary that the entropy is over, from the first on; None: all. Log-probs are over all.
        inplace: let the backward pass write the gradient into the logits, which must not be used after it.

    Returns:
        ``(T,)`` log-probabilities and ``(T,)`` nats, float32 or float64.

    Raises:
        ValueError: shapes that do not fit, or a functional that has no rule here.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (T, V) and labels (T,), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    if not isinstance(functional, FUNCTIONALS):
        raise ValueError(f"the functional {functional.kind!r} has no rule in this operation: use its own `entropy`")
    temperature = torch.as_tensor(temperature, dtype=torch.float32, device=logits.device).expand(len(logits))
    wanted = torch.ones_like(labels, dtype=torch.bool) if row_weight is None else row_weight != 0
    return _LogprobAndEntropy.apply(logits, labels, temperature, wanted, _Settings(functional, columns, inplace))


class _State(NamedTuple):
    """What the backward pass needs beside the logits, each ``(T,)``.

    top: max z. log_z: log Z of y = z - top. log_zk, mean_y: log Z and E[y] over the kept tokens. threshold, cut: the
    kept tokens; unused where all are kept.
    """

    top: torch.Tensor
    log_z: torch.Tensor
    log_zk: torch.Tensor
    mean_y: torch.Tensor
    threshold: torch.Tensor
    cut: torch.Tensor

    @classmethod
    def empty(cls, rows: int, dtype: torch.dtype, device: torch.device) -> _State:
        numbers = [torch.zeros(rows, dtype=dtype, device=device) for _ in cls._fields[:-1]]
        return cls(*numbers, torch.zeros(rows, dtype=torch.long, device=device))


class _LogprobAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        temperature: torch.Tensor,
        wanted: torch.Tensor,
        settings: _Settings,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        state = _State.empty(len(logits), dtype, logits.device)
        log_pi = torch.empty_like(state.top)
        for rows in _chunks(logits):
            z = _scaled(logits[rows], temperature[rows], dtype)
            log_pi[rows] = z.gather(-1, labels[rows, None]).squeeze(-1)
            best = z.max(dim=-1)
            state.top[rows] = best.values
            y = z.sub_(best.values[:, None])
            others = y.exp().scatter_(-1, best.indices[:, None], 0.0)  # e^y, 0 at the most likely token
            state.log_z[rows] = others.sum(dim=-1).log1p()
            if wanted[rows].all():
                _measure(settings, y, others, state, rows)
            elif wanted[rows].any():
                some = wanted[rows].nonzero().squeeze(-1)
                _measure(settings, y[some], others[some], state, some + rows.start)
        log_pi -= state.top + state.log_z
        ctx.save_for_backward(logits, labels, temperature, wanted, *state)
        ctx.settings = settings
        return log_pi, torch.where(wanted, state.log_zk - state.mean_y, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_pi: torch.Tensor, grad_entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, labels, temperature, wanted, *saved = ctx.saved_tensors
        state, settings = _State(*saved), ctx.settings
        grad = logits if settings.inplace else torch.empty_like(logits)
        grad_entropy = torch.where(wanted, grad_entropy, 0.0)
        for rows in _chunks(logits):
            y = _scaled(logits[rows], temperature[rows], state.top.dtype).sub_(state.top[rows, None])
            pi = (y - state.log_z[rows, None]).exp_()
            pulled = (grad_entropy[rows] != 0).nonzero().squeeze(-1)
            if len(pulled) == len(y):
                pi.mul_(_pull(settings, y, state, rows, grad_entropy, grad_log_pi)).neg_()
            else:
                here = pulled + rows.start
                some = pi[pulled].mul_(_pull(settings, y[pulled], state, here, grad_entropy, grad_log_pi))
                pi.mul_(-grad_log_pi[rows, None])
                pi[pulled] = some.neg_()
            pi.scatter_add_(-1, labels[rows, None], grad_log_pi[rows, None])
            grad[rows] = pi.div_(temperature[rows, None])
        return grad, None, None, None, None


def _chunks(logits: torch.Tensor) -> Iterator[slice]:
    """Rows whose float32 copy is about CHUNK_BYTES."""
    size = max(1, CHUNK_BYTES // (4 * max(logits.shape[-1], 1)))
    for start in range(0, len(logits), size):
        yield slice(start, start + size)


def _scaled(logits: torch.Tensor, temperature: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """z = logits / temperature, a copy."""
    return logits.to(dtype, copy=True, memory_format=torch.contiguous_format).div_(temperature[:, None])


def _measure(settings: _Settings, y: torch.Tensor, others: torch.Tensor, state: _State, rows: Rows) -> None:
    """log Z_K and E_K[y] of some rows, and which tokens K are; ``y`` and ``others`` are used up.

    others: e^y, 0 at the most likely token.
    """
    if settings.keeps_all(y):
        state.log_zk[rows] = state.log_z[rows]
        state.mean_y[rows] = torch.linalg.vecdot(others, _finite(y)) / state.log_z[rows].exp()
        return
    kept = choose(settings.functional, y[:, : settings.columns])
    state.threshold[rows], state.cut[rows] = kept
    y.masked_fill_(left_out(settings.functional, y, kept, settings.columns), -torch.inf)
    # The most likely token may be left out itself: one of several of its kind, or a column that no tokenizer has.
    best = y.max(dim=-1, keepdim=True)
    y.sub_(best.values)
    torch.exp(y, out=others).scatter_(-1, best.indices, 0.0)
    log_zk = others.sum(dim=-1).log1p()
    shift = best.values.squeeze(-1)
    state.log_zk[rows] = log_zk + shift
    state.mean_y[rows] = torch.linalg.vecdot(others, _finite(y)) / log_zk.exp() + shift


def _pull(
    settings: _Settings,
    y: torch.Tensor,
    state: _State,
    rows: Rows,
    grad_entropy: torch.Tensor,
    grad_log_pi: torch.Tensor,
) -> torch.Tensor:
    """g_log_pi + g_H * (pi~_j / pi_j) * (y_j - E_K[y]), the latter on the kept tokens, in the place of ``y``."""
    outside = None
    if not settings.keeps_all(y):
        kept = Kept(state.threshold[rows], state.cut[rows])
        outside = left_out(settings.functional, y, kept, settings.columns)
    scale = grad_entropy[rows] * (state.log_z[rows] - state.log_zk[rows]).exp()
    pull = _finite(y).sub_(state.mean_y[rows, None]).mul_(scale[:, None])
    if outside is not None:
        pull.masked_fill_(outside, 0.0)
    return pull.add_(grad_log_pi[rows, None])


def _finite(y: torch.Tensor) -> torch.Tensor:
    """y in place, with -inf and all that is as good as it raised: e^-10000 is 0 in every type, and 0 * -inf is NaN."""
    return y.clamp_(min=-1e4)
