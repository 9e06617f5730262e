"""Triton backend: one program per row, which reads the row once per pass.

With d = x - max x in units of the logits and e = e^{d / temperature}, computed with exp2,

    s = sum of e over all tokens except the most likely one,   t = sum of d * e over all tokens

the results of the row are log Z = log(1 + s) and E[y] = t / temperature / (1 + s). Each lane of a program keeps its own
maximum and sums along the row, so that the lanes are combined only at the end of the row:

    x above the lane's maximum:   s <- e (s + 1),   t <- e (t + d (s + 1))
    otherwise:                    s <- s + e,       t <- t + d e

If tokens are excluded, the same program first chooses the kept tokens by radix selection: it finds the bits of the
threshold four at a time, from the total weight (a count or a probability) of the tokens in each of sixteen classes.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from verl_aer.kernels.saved_state import KernelSettings, SavedRows, leaves_none_out
from verl_aer.parts.measure import Clamped, Nucleus

FLOOR = tl.constexpr(-1e30)
"""Replaces -inf, because -inf - -inf is NaN."""
LOWEST = tl.constexpr(-1e20)
"""Lower bound of d, because 0 * -inf is NaN; e^d is 0 there."""
LOG2_E = tl.constexpr(math.log2(math.e))

KEEP_ALL = tl.constexpr(0)
KEEP_COLUMNS = tl.constexpr(1)
KEEP_CLAMPED = tl.constexpr(2)
KEEP_NUCLEUS = tl.constexpr(3)

BLOCK = 2048
"""Number of vocabulary entries that a program processes at a time."""
CHOICE_BLOCK = 1024
"""The same during the selection of the kept tokens."""
WARPS = 8
ORDER_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
"""Number of leading bits of a float32 that distinguish any two numbers of a type, rounded up to a multiple of four."""


def forward(
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: torch.Tensor,
    wanted: torch.Tensor,
    settings: KernelSettings,
) -> tuple[torch.Tensor, SavedRows]:
    """Compute the ``(T,)`` log-probabilities and the state for the backward pass."""
    rows, vocabulary = logits.shape
    state = SavedRows.empty(rows, torch.float32, logits.device)
    top, s, kept_top, kept_s, kept_t = torch.zeros(5, rows, device=logits.device)
    # As a tensor, because floor(p * V) needs float64 and scalar arguments of a kernel are float32.
    p = torch.full((), getattr(settings.measure, "p", 0.0), dtype=torch.float64, device=logits.device)
    if rows:
        with torch.cuda.device_of(logits):
            _forward_kernel[(rows,)](
                logits, temperature, wanted, top, s, kept_top, kept_s, kept_t, state.threshold, state.cut,
                *logits.stride(), vocabulary, _columns(settings, vocabulary), p,
                KEEP=_rule(settings, vocabulary), BITS=ORDER_BITS[logits.dtype], BLOCK=_block(vocabulary, BLOCK),
                CHOICE_BLOCK=_block(vocabulary, CHOICE_BLOCK), num_warps=WARPS, enable_fp_fusion=True,
            )  # fmt: skip
    top = _finite_or_nan(top, s)
    kept_top = torch.where(wanted, _finite_or_nan(kept_top, kept_s), 0.0)
    log_z, kept_log_z = s.log1p(), kept_s.log1p()
    shift = torch.where(wanted, (kept_top - top) / temperature, 0.0)
    mean_y = kept_t / temperature / (1 + kept_s) + shift
    log_pi = (logits.gather(-1, labels[:, None]).squeeze(-1).float() - top) / temperature - log_z
    return log_pi, state._replace(top=top, log_z=log_z, log_zk=kept_log_z + shift, mean_y=mean_y)


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
    rows, vocabulary = logits.shape
    if not rows:
        return
    pull = grad_log_pi / temperature
    # An unused entropy may be NaN, and 0 * NaN is NaN.
    read = grad_entropy != 0
    pull_of_entropy = torch.where(read, grad_entropy / temperature * (state.log_z - state.log_zk).exp(), 0.0)
    state = state._replace(mean_y=torch.where(read, state.mean_y, 0.0))
    with torch.cuda.device_of(logits):
        _backward_kernel[(rows,)](
            logits, labels, temperature, *state, pull, pull_of_entropy, grad,
            *logits.stride(), *grad.stride(), vocabulary, _columns(settings, vocabulary),
            KEEP=_rule(settings, vocabulary), BLOCK=_block(vocabulary, BLOCK), num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip


def _finite_or_nan(top: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Return ``top``, or NaN for a row that is no distribution: its sum is NaN, or its top is FLOOR or infinite."""
    return torch.where((top > FLOOR.value) & top.isfinite() & ~s.isnan(), top, torch.nan)


def _rule(settings: KernelSettings, vocabulary: int) -> tl.constexpr:
    if settings.keeps_all(vocabulary):
        return KEEP_ALL
    if leaves_none_out(settings.measure):
        return KEEP_COLUMNS
    return {Clamped: KEEP_CLAMPED, Nucleus: KEEP_NUCLEUS}[type(settings.measure)]


def _columns(settings: KernelSettings, vocabulary: int) -> int:
    return vocabulary if settings.columns is None else min(settings.columns, vocabulary)


def _block(vocabulary: int, largest: int) -> int:
    return min(largest, triton.next_power_of_2(vocabulary))


@triton.jit
def _forward_kernel(
    logits, temperature, wanted, top, s, kept_top, kept_s, kept_t, threshold, cut,
    row_stride, column_stride, vocabulary, columns, p,
    KEEP: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, CHOICE_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x = logits + row * row_stride
    scale = LOG2_E / tl.load(temperature + row)
    has_entropy = tl.load(wanted + row)
    row_top, row_s, row_t = _sums(
        x, column_stride, vocabulary, columns, scale, has_entropy & (KEEP == KEEP_ALL), 0.0, 0, KEEP_ALL, BLOCK
    )
    tl.store(top + row, row_top)
    tl.store(s + row, row_s)
    if has_entropy:
        if KEEP != KEEP_ALL:
            row_threshold, row_cut = _choose(x, column_stride, columns, scale, p, KEEP, BITS, CHOICE_BLOCK)
            tl.store(threshold + row, row_threshold)
            tl.store(cut + row, row_cut)
            row_top, row_s, row_t = _sums(
                x, column_stride, vocabulary, columns, scale, True, row_threshold, row_cut, KEEP, BLOCK
            )
        tl.store(kept_top + row, row_top)
        tl.store(kept_s + row, row_s)
        tl.store(kept_t + row, row_t)


@triton.jit
def _sums(
    x, stride, vocabulary, columns, scale, with_t, threshold, cut, KEEP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Compute max, s and t of the kept tokens; t is 0 unless ``with_t``."""
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), FLOOR, tl.float32)
    s = tl.zeros((BLOCK,), tl.float32)
    t = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        index = start + lane
        value = tl.load(x + index.to(tl.int64) * stride, mask=index < vocabulary, other=float("-inf")).to(tl.float32)
        if KEEP != KEEP_ALL:
            value = tl.where(_is_kept(value, index, columns, threshold, cut, KEEP), value, float("-inf"))
        value = tl.maximum(value, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        d = -tl.abs(value - top)
        e = tl.exp2(d * scale)
        # Combines both rules of the module's docstring: s <- a s + e, and t <- a t + d s or a t + d e.
        higher = value > top
        a = tl.where(higher, e, 1.0)
        s = a * s + e
        if with_t:
            t = a * t + d * tl.where(higher, s, e)
        top = tl.where(higher, value, top)
    # Combine the lanes. The sums of all lanes except the highest include their most likely token.
    highest = tl.max(top, 0)
    d = top - highest
    e = tl.exp2(d * scale)
    itself = lane == tl.argmax(top, 0)
    t = tl.sum(tl.where(itself, t, e * (t + d * (s + 1))), 0)
    s = tl.sum(tl.where(itself, s, e * (s + 1)), 0)
    return highest, s, t


@triton.jit
def _is_kept(value, index, columns, threshold, cut, KEEP: tl.constexpr):
    if KEEP == KEEP_COLUMNS:
        return index < columns
    tied = (index > cut) if KEEP == KEEP_CLAMPED else (index <= cut)
    return (index < columns) & ((value > threshold) | ((value == threshold) & tied))


@triton.jit
def _choose(x, stride, columns, scale, p, KEEP: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Choose the threshold and cut of the kept tokens, as defined in `verl_aer.kernels.token_subset`.

    If the amount is 0, no token is chosen: the threshold is -inf, and all tokens are kept.
    """
    threshold = float("-inf")
    cut = columns - 1
    if KEEP != KEEP_COLUMNS:
        share = tl.load(p)
        excluded, highest = _extent(x, stride, columns, BLOCK)
        if KEEP == KEEP_CLAMPED:
            # In float64, as in Python.
            amount = tl.floor((columns - excluded).to(tl.float64) * share).to(tl.int32) + excluded
            dtype: tl.constexpr = tl.int32
        else:
            amount = tl.zeros((), tl.float64)  # known after the first pass over the row
            dtype: tl.constexpr = tl.float64
        below = tl.zeros((), dtype)
        base = -8
        classes = tl.arange(0, 16)
        for step in tl.static_range(BITS // 4):
            weight = tl.zeros((16,), dtype)
            for start in range(0, columns, BLOCK):
                value, order, inside = _ordered(x, stride, columns, start, KEEP, BLOCK)
                heavy = _weight(value, inside, highest, scale, KEEP)
                digit = (order >> (28 - 4 * step)) - base
                weight += tl.sum(tl.where(digit[:, None] == classes[None, :], heavy[:, None], 0), 0)
            if KEEP == KEEP_NUCLEUS and step == 0:
                amount = tl.sum(weight, 0) * share
            short = (below + tl.cumsum(weight, 0)) < amount
            chosen = tl.minimum(tl.sum(short.to(tl.int32), 0), 15)
            below += tl.sum(tl.where(classes < chosen, weight, 0), 0)
            base = base + chosen
            if step < BITS // 4 - 1:
                base = base * 16
        threshold, cut = _cut(x, stride, columns, scale, highest, base, amount - below, KEEP, BITS, BLOCK)
    return threshold, cut


@triton.jit
def _extent(x, stride, columns, BLOCK: tl.constexpr):
    """Compute the number of entries of -inf and the highest logit."""
    excluded = tl.zeros((BLOCK,), tl.int32)
    highest = tl.full((BLOCK,), FLOOR, tl.float32)
    for start in range(0, columns, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < columns
        value = tl.load(x + index.to(tl.int64) * stride, mask=inside, other=0.0).to(tl.float32)
        excluded += (inside & (value == float("-inf"))).to(tl.int32)
        highest = tl.maximum(highest, tl.where(inside, value, FLOOR))
    return tl.sum(excluded, 0), tl.max(highest, 0)


@triton.jit
def _ordered(x, stride, columns, start, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    """Load logits; return them, integers in selection order (clamped: from the lowest), and a mask of valid columns."""
    index = start + tl.arange(0, BLOCK)
    inside = index < columns
    value = tl.load(x + index.to(tl.int64) * stride, mask=inside, other=0.0).to(tl.float32) + 0.0  # no -0.0
    bits = value.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if KEEP == KEEP_NUCLEUS:
        order = ~order
    return value, order, inside


@triton.jit
def _weight(value, inside, highest, scale, KEEP: tl.constexpr):
    """Compute the weight of each token: 1, or its probability up to a constant factor."""
    if KEEP == KEEP_CLAMPED:
        weight = inside.to(tl.int32)
    else:
        weight = tl.where(inside, tl.exp2((value - highest) * scale), 0.0).to(tl.float64)
    return weight


@triton.jit
def _cut(
    x, stride, columns, scale, highest, chosen, amount, KEEP: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Find the logit of the chosen order, and the index of its last token that `amount` reaches."""
    threshold = float("-inf")
    cut = -1
    before = 0
    for start in range(0, columns, BLOCK):
        value, order, inside = _ordered(x, stride, columns, start, KEEP, BLOCK)
        tied = inside & ((order >> (32 - BITS)) == chosen)
        threshold = tl.maximum(threshold, tl.max(tl.where(tied, value, float("-inf")), 0))
        place = before + tl.cumsum(tied.to(tl.int32), 0)
        # A token is reached if the tied tokens before it have less weight than the amount.
        heavy = _weight(value, inside, highest, scale, KEEP)
        reached = tied & ((place - 1) * heavy < amount)
        cut = tl.maximum(cut, tl.max(tl.where(reached, start + tl.arange(0, BLOCK), -1), 0))
        before += tl.sum(tied.to(tl.int32), 0)
    return threshold, cut


@triton.jit
def _backward_kernel(
    logits, labels, temperature, top, log_z, log_zk, mean_y, threshold, cut, pull, pull_of_entropy, grad,
    row_stride, column_stride, grad_row_stride, grad_column_stride, vocabulary, columns,
    KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x = logits + row * row_stride
    out = grad + row * grad_row_stride
    of_log_pi = tl.load(pull + row)
    of_entropy = tl.load(pull_of_entropy + row)
    label = tl.load(labels + row).to(tl.int32)
    inverse = 1.0 / tl.load(temperature + row)
    scale = LOG2_E * inverse
    row_top = tl.load(top + row)
    row_log_z = tl.load(log_z + row)
    # g_log_pi + g_H (y - E[y]), as a linear function of d
    of_y = of_entropy * inverse
    of_all = of_log_pi - of_entropy * tl.load(mean_y + row)
    row_threshold = tl.load(threshold + row)
    row_cut = tl.load(cut + row)
    lane = tl.arange(0, BLOCK)
    if (of_log_pi == 0) & (of_entropy == 0):
        for start in range(0, vocabulary, BLOCK):
            index = start + lane
            zero = tl.zeros((BLOCK,), grad.dtype.element_ty)
            tl.store(out + index.to(tl.int64) * grad_column_stride, zero, mask=index < vocabulary)
    else:
        for start in range(0, vocabulary, BLOCK):
            index = start + lane
            inside = index < vocabulary
            value = tl.load(x + index.to(tl.int64) * column_stride, mask=inside, other=float("-inf")).to(tl.float32)
            d = tl.maximum(value - row_top, LOWEST, propagate_nan=tl.PropagateNan.ALL)
            pi = tl.exp2(d * scale - row_log_z * LOG2_E)
            if KEEP == KEEP_ALL:
                pull_here = of_y * d + of_all
            else:
                kept = _is_kept(value, index, columns, row_threshold, row_cut, KEEP)
                pull_here = tl.where(kept, of_y * d + of_all, of_log_pi)
            g = tl.where(index == label, of_log_pi, 0.0) - pi * pull_here
            tl.store(out + index.to(tl.int64) * grad_column_stride, g.to(grad.dtype.element_ty), mask=inside)
