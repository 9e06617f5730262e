"""The entropy of a measure that has no rule here, a user's own: by its ``entropy``, for a chunk of rows at a time.

The forward pass keeps nothing but the logits. The backward pass computes each chunk again, this time with autograd, and
writes its gradient into the one of all rows. So the measure's own temporaries are those of a chunk in either pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from verl_aer.kernels.saved_state import chunk_rows
from verl_aer.parts.measure import Measure


def recomputed_entropy(
    measure: Measure,
    logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    row_weight: torch.Tensor | None = None,
    columns: int | None = None,
) -> torch.Tensor:
    """Entropy of each row by the measure's own ``entropy``, differentiable in the logits.

    The measure is called on rows of ``logits / temperature`` in float32, or float64 for float64, without autocast.
    It is called twice on each, so it must be deterministic. A row that is no distribution (`Measure.entropy`) has an
    entropy of NaN whatever the measure says.

    Args:
        measure: any, but one that depends on the sampled token.
        logits: ``(T, V)``, any floating type.
        temperature: > 0, a number or ``(T,)``.
        row_weight: ``(T,)``; a row of weight 0 has entropy 0 and is never given to the measure. Where all are 0, the
            result has no gradient. None: all rows have one.
        columns: of the vocabulary that the measure gets, from the first on; None: all.

    Returns:
        ``(T,)`` nats, float32 or float64.

    Raises:
        ValueError: a measure whose result is not one number per row, or has no gradient where one is asked for.
    """
    temperature = torch.as_tensor(temperature, dtype=torch.float32, device=logits.device).expand(len(logits))
    every_row = torch.arange(len(logits), device=logits.device)
    rows = every_row if row_weight is None else row_weight.nonzero().squeeze(-1)
    if not len(rows):
        return logits.new_zeros(len(logits), dtype=_dtype(logits))
    return _RecomputedEntropy.apply(logits, temperature, rows, measure, columns)


class _RecomputedEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        temperature: torch.Tensor,
        rows: torch.Tensor,
        measure: Measure,
        columns: int | None,
    ) -> torch.Tensor:
        entropy = logits.new_zeros(len(logits), dtype=_dtype(logits))
        for some in rows.split(chunk_rows(logits)):
            z = _scaled(logits, temperature, some, columns)
            value = _entropy_of(measure, z)
            entropy[some] = value.masked_fill(~z.amax(dim=-1).isfinite(), torch.nan).to(entropy.dtype)
        ctx.save_for_backward(logits, temperature, rows)
        ctx.measure, ctx.columns = measure, columns
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, temperature, rows = ctx.saved_tensors
        grad = torch.zeros_like(logits)
        read = rows[grad_entropy[rows] != 0]
        for some in read.split(chunk_rows(logits)):
            z = _scaled(logits, temperature, some, ctx.columns).requires_grad_()
            with torch.enable_grad():
                value = _entropy_of(ctx.measure, z)
            if not value.requires_grad:
                raise ValueError(
                    f"the entropy of the measure {ctx.measure.kind!r} has no gradient: compute it with "
                    "differentiable operations from the logits that `entropy` is given"
                )
            (of_z,) = torch.autograd.grad(value, z, grad_entropy[some].to(value.dtype))
            grad[some, : ctx.columns] = of_z.div_(temperature[some, None]).to(grad.dtype)
        return grad, None, None, None, None


def _dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _scaled(logits: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, columns: int | None) -> torch.Tensor:
    """``logits / temperature`` of these rows, a copy."""
    return logits[rows, :columns].to(_dtype(logits)).div_(temperature[rows, None])


def _entropy_of(measure: Measure, z: torch.Tensor) -> torch.Tensor:
    # Not in the type of the forward pass's autocast, which the backward pass does not have.
    with torch.autocast(z.device.type, enabled=False):
        value = measure.entropy(z)
    if value.shape != z.shape[:1]:
        raise ValueError(
            f"the measure {measure.kind!r} must return one entropy per row, {tuple(z.shape[:1])} for logits of "
            f"{tuple(z.shape)}; it returned {tuple(value.shape)}"
        )
    return value
