"""Summarize a run in a few numbers from its metrics log.

With the mean of the last w = 20 steps, M_t = (H_{t-w+1} + ... + H_t) / w, and the target H*,

    arrival = the first step t >= w from which M_t is on the other side of H* than the first entropy, or on it
    band    = [min, max] over t >= arrival of M_t / H* - 1

The mean is used because a step has tens of prompts, and the entropy of one step depends on their mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from verl_aer._tables import Table
from verl_aer.control.metrics import MetricsRow
from verl_aer.reports.metrics_log import is_finite, series

WINDOW = 20
"""Steps of the running mean. The accuracy of one step's tens of prompts varies by several points."""

Seed = Sequence[MetricsRow]
"""The metrics log of one training seed."""

BOUNDS = {"alpha_max": "raise", "alpha_min": "lower"}
"""The bounds of alpha, each with the advice if it limits alpha."""

NOT_LOGGED = "–"


@dataclass(frozen=True)
class Summary:
    """Summary of one run. Values that were never logged are None.

    Attributes:
        steps: last global step of the log.
        first_entropy, last_entropy: entropy of the first step, and mean of the last w, nats per token.
        target: H* at the end, nats per token.
        arrival: global step.
        band: lowest and highest relative distance of M_t from H*, from the arrival on.
        largest_alpha: loss units per nat.
        held_back: bound -> number of steps in which it limited alpha.
        skipped_updates: number of entropies that were not finite.
        first_accuracy, last_accuracy: mean of the first and of the last w steps.
    """

    steps: int
    first_entropy: float | None
    last_entropy: float | None
    target: float | None
    arrival: int | None
    band: tuple[float, float] | None
    largest_alpha: float | None
    held_back: Mapping[str, int]
    skipped_updates: int
    first_accuracy: float | None
    last_accuracy: float | None


def summarize(rows: Seed) -> Summary:
    """Summarize one metrics log."""
    steps, entropy = series(rows, "aer/entropy")
    _, target = series(rows, "aer/target")
    _, alpha = series(rows, "aer/alpha")
    _, skipped = series(rows, "aer/skipped_updates")
    _, accuracy = series(rows, "aer/accuracy/mean")
    arrival, band = _arrival(steps, entropy, target[-1]) if len(target) else (None, None)
    holding = [bound_that_holds(row.data) for row in rows]
    return Summary(
        steps=rows[-1].step,
        first_entropy=_mean(entropy[:1]),
        last_entropy=_mean(entropy[-WINDOW:]),
        target=_mean(target[-1:]),
        arrival=arrival,
        band=band,
        largest_alpha=float(alpha.max()) if len(alpha) else None,
        held_back={bound: holding.count(bound) for bound in BOUNDS},
        skipped_updates=int(skipped[-1]) if len(skipped) else 0,
        first_accuracy=_mean(accuracy[:WINDOW]),
        last_accuracy=_mean(accuracy[-WINDOW:]),
    )


def running_mean(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Compute the mean of the last `window` values along the last axis; of fewer values at the start.

        y_t = (x_{max(1, t - w + 1)} + ... + x_t) / min(t, w)

    >>> running_mean(np.array([1.0, 2.0, 3.0, 7.0]), window=2)
    array([1. , 1.5, 2.5, 5. ])
    """
    padded = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    ends = np.arange(1, values.shape[-1] + 1)
    starts = np.maximum(ends - window, 0)
    return (padded[..., ends] - padded[..., starts]) / (ends - starts)


def bound_that_holds(data: Mapping[str, float]) -> str | None:
    """Return the bound that limited alpha in a step: the upper one if the entropy was too low, else the lower one."""
    if not data.get("aer/saturated"):
        return None
    error = data.get("aer/error")
    return "alpha_max" if is_finite(error) and error > 0 else "alpha_min"


def advice_on_bounds(held_back: Mapping[str, int], steps: int) -> list[str]:
    """Write one sentence with advice for each bound that limited alpha.

    >>> advice_on_bounds({"alpha_max": 3, "alpha_min": 0}, steps=12)
    ['alpha sat at its bound in 3 of 12 steps: raise entropy.controller.alpha_max']
    """
    return [
        f"alpha sat at its bound in {held_back[bound]} of {steps} steps: {remedy} entropy.controller.{bound}"
        for bound, remedy in BOUNDS.items()
        if held_back[bound]
    ]


def summary_table(arms: Mapping[str, Sequence[Seed]]) -> Table:
    """Make a table with one row per log. Several logs of one label are numbered training seeds."""
    header = [
        "run",
        "steps",
        "entropy",
        "change",
        "target",
        "arrives at step",
        "then within",
        "largest α",
        "steps at a bound",
        "skipped updates",
        "accuracy",
    ]
    rows = []
    for label, seeds in arms.items():
        for number, seed in enumerate(seeds, start=1):
            name = f"{label} {number}" if len(seeds) > 1 else label
            rows.append([name, *_cells(summarize(seed))])
    title = f"entropy in nats/token: first step → mean of the last {WINDOW}; target and band: mean of {WINDOW} steps"
    return Table(title, header, rows)


def _arrival(
    steps: np.ndarray, entropy: np.ndarray, target: float
) -> tuple[int, tuple[float, float]] | tuple[None, None]:
    """Find arrival and band of `entropy` (S,) at the global `steps` (S,)."""
    mean = running_mean(entropy)[WINDOW - 1 :]
    crossed = mean <= target if entropy[0] > target else mean >= target
    if not crossed.any():
        return None, None
    first = int(crossed.argmax())
    distance = mean[first:] / target - 1.0
    return int(steps[WINDOW - 1 + first]), (float(distance.min()), float(distance.max()))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _cells(summary: Summary) -> list[str]:
    first, last = summary.first_entropy, summary.last_entropy
    alpha, arrival, band = summary.largest_alpha, summary.arrival, summary.band
    has_target = summary.target is not None
    return [
        str(summary.steps),
        _from_to(first, last),
        f"{last / first - 1:+.0%}" if first and last is not None else NOT_LOGGED,
        f"{summary.target:.3f}" if has_target else NOT_LOGGED,
        str(arrival) if arrival is not None else ("never" if has_target else NOT_LOGGED),
        f"{band[0]:+.1%} to {band[1]:+.1%}" if band is not None else NOT_LOGGED,
        f"{alpha:.3g}" if alpha is not None else NOT_LOGGED,
        str(sum(summary.held_back.values())),
        str(summary.skipped_updates),
        _from_to(summary.first_accuracy, summary.last_accuracy),
    ]


def _from_to(first: float | None, last: float | None) -> str:
    return NOT_LOGGED if first is None or last is None else f"{first:.3f} → {last:.3f}"
