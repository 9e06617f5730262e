"""Entropy of any measure, such as a user-defined one, computed with its ``entropy`` for one chunk of rows at a time.

The forward pass saves only the logits. The backward pass recomputes each chunk with autograd and writes its gradient
into the gradient of all rows. In both passes the measure's temporaries are limited to one chunk.
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
    """Compute the entropy of each row with the measure's ``entropy``, differentiable in the logits.

    The measure is called on rows of ``logits / temperature`` in float32, or float64 for float64, without autocast.
    It is called twice per row, so it must be deterministic. The entropy of a row that is no distribution
    (`Measure.entropy`) is NaN for every measure.

    Args:
        measure: any measure that does not depend on the sampled token.
        logits: ``(T, V)``, any floating type.
        temperature: > 0, a number or ``(T,)``.
        row_weight: ``(T,)``; the entropy of a row with weight 0 is 0, and the measure is not called on it. If all
            weights are 0, the result has no gradient. None computes the entropy of all rows.
        columns: the measure gets the first ``columns`` entries of the vocabulary; None for all.

    Returns:
        ``(T,)`` nats, float32 or float64.

    Raises:
        ValueError: the measure does not return one number per row, or its result has no gradient when one is needed.
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
    def backward(ctx: Any, grad_entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
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
                    "differentiable operations from the logits that `entropy` gets"
                )
            (of_z,) = torch.autograd.grad(value, z, grad_entropy[some].to(value.dtype))
            grad[some, : ctx.columns] = of_z.div_(temperature[some, None]).to(grad.dtype)
        return grad, None, None, None, None


def _dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _scaled(logits: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, columns: int | None) -> torch.Tensor:
    """Return ``logits / temperature`` of these rows as a copy."""
    return logits[rows, :columns].to(_dtype(logits)).div_(temperature[rows, None])


def _entropy_of(measure: Measure, z: torch.Tensor) -> torch.Tensor:
    # Without autocast, because the backward pass runs outside the autocast of the forward pass.
    with torch.autocast(z.device.type, enabled=False):
        value = measure.entropy(z)
    if value.shape != z.shape[:1]:
        raise ValueError(
            f"the measure {measure.kind!r} must return one entropy per row, {tuple(z.shape[:1])} for logits of "
            f"{tuple(z.shape)}; it returned {tuple(value.shape)}"
        )
    return value
