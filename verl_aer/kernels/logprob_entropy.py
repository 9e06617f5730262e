"""One operation that computes the log-probabilities and entropies of a policy update from the logits.

    log pi(label) = y_label - log Z,         y = (logits - max) / temperature,  Z = sum_v e^{y_v}
    H             = log Z_K - E_K[y],        over the kept tokens K: all of them, or those of the measure

    d log pi / dz_j = 1[j = label] - pi_j
    d H / dz_j      = -pi~_j (y_j - E_K[y])  for j in K, else 0,    z = logits / temperature

As separate operations, each of the two reads the logits, writes temporaries as wide as the vocabulary, and keeps one
of them for its backward pass. Here each pass reads the logits once, works in float32, and saves a few numbers per token
for the backward pass. There are two backends: Triton on a GPU, and PyTorch in chunks of rows on a CPU.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from verl_aer.kernels import chunked
from verl_aer.kernels.saved_state import KernelSettings, SavedRows
from verl_aer.parts.measure import Clamped, Full, Measure, Nucleus

MEASURES = (Full, Clamped, Nucleus)
"""Measures that this operation supports. Other measures, and subclasses of these, need `recomputed_entropy`."""

FULL = Full()


def logprob_and_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    measure: Measure = FULL,
    row_weight: torch.Tensor | None = None,
    columns: int | None = None,
    inplace: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute log pi(label) and the entropy of each row, differentiable in the logits.

    A row with NaN or +inf, or of only -inf, is no distribution. Both results are NaN, and so is the gradient if one of
    the results is used. If all of the first ``columns`` entries are -inf, only the entropy is NaN.

    Args:
        logits: ``(T, V)``, any floating type; -inf excludes an entry. Sums are in float32, or float64 for float64.
        labels: ``(T,)`` int64.
        temperature: > 0, a number or ``(T,)``.
        measure: one of MEASURES.
        row_weight: ``(T,)``; the entropy of a row with weight 0 is 0 and is not computed in either pass. None computes
            the entropy of all rows.
        columns: the entropy is over the first ``columns`` entries of the vocabulary; None for all. Log-probs are always
            over all.
        inplace: let the backward pass write the gradient into the logits, which must not be used afterwards.

    Returns:
        ``(T,)`` log-probabilities and ``(T,)`` nats, float32 or float64.

    Raises:
        ValueError: the shapes do not match, the measure is not one of MEASURES, or the device is not CPU or CUDA.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (T, V) and labels (T,), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    if type(measure) not in MEASURES:
        raise ValueError(f"this operation does not support the measure {measure.kind!r}; use `recomputed_entropy`")
    temperature = torch.as_tensor(temperature, dtype=torch.float32, device=logits.device).expand(len(logits))
    wanted = torch.ones_like(labels, dtype=torch.bool) if row_weight is None else row_weight != 0
    # The kernels read one number per row from contiguous memory.
    each = (labels.contiguous(), temperature.contiguous(), wanted.contiguous())
    return _LogprobAndEntropy.apply(logits, *each, KernelSettings(measure, columns), inplace, _backend(logits))


def _backend(logits: torch.Tensor) -> ModuleType:
    """Choose the backend. The Triton kernels sum in float32, so float64 uses PyTorch."""
    if logits.is_cuda and logits.dtype != torch.float64 and _has_triton():
        # Imported here, because Triton may be missing on a machine without a GPU.
        from verl_aer.kernels import triton_rows

        return triton_rows
    return chunked


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


class _LogprobAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        temperature: torch.Tensor,
        wanted: torch.Tensor,
        settings: KernelSettings,
        inplace: bool,
        backend: ModuleType,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_pi, state = backend.forward(logits, labels, temperature, wanted, settings)
        ctx.save_for_backward(logits, labels, temperature, wanted, *state)
        ctx.settings, ctx.inplace, ctx.backend = settings, inplace, backend
        # Both numbers are 0 in rows without entropy.
        return log_pi, state.log_zk - state.mean_y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_pi: torch.Tensor, grad_entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, labels, temperature, wanted, *state = ctx.saved_tensors
        # Not the saved tensor, which requires a gradient: autograd may add to the returned tensor.
        grad = logits.detach() if ctx.inplace else torch.empty_like(logits)
        grad_entropy = torch.where(wanted, grad_entropy, 0.0)
        ctx.backend.backward(
            logits, labels, temperature, SavedRows(*state), ctx.settings, grad_log_pi, grad_entropy, grad
        )
        return grad, None, None, None, None, None, None
