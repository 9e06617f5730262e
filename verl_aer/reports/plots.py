"""Draw one figure with four panels from metrics logs: entropy and its target, the coefficient alpha, the coefficient
by difficulty bucket, and training accuracy.

A single log is drawn as a bold running mean, centered on its step, over its light raw trace. Several logs with one
label are the seeds of one arm. Their running means are thin lines, with a bold mean and a band from the lowest to the
highest. A label has the same color in every panel and figure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from verl_aer._files import replaced_atomically
from verl_aer.errors import InputError
from verl_aer.extras import require_extra
from verl_aer.reports.metrics_log import series
from verl_aer.reports.summary import WINDOW, Seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "aer": "#0072B2",
    "fixed": "#D55E00",
    "none": "#555555",
    "aer_allocation_only": "#009E73",
    "aer_no_allocation": "#CC79A7",
    "aer_absolute_target": "#8C6BB1",
}
"""Okabe and Ito's colors, which color-blind readers can distinguish. Other labels take the spare colors in turn."""
SPARE_COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8C6BB1", "#8B5A2B", "#B2B200",
)  # fmt: skip

BUCKETS = {
    "hard": ("solid", "hard < ⅓"),
    "medium": ((0, (5, 2)), "medium"),
    "easy": ((0, (1, 1.6)), "easy ≥ ⅔"),
}
"""Line style and legend text (group accuracy) of the difficulty buckets of the metrics `aer/weight/...`."""

LEGEND_COLUMNS = 6
DPI = 170
INK = "#222222"
FAINT_INK = "#777777"
GRID = "#E6E6E6"


class Trace(NamedTuple):
    """A quantity of an arm over the steps that all its seeds have: `values` is (seeds, S)."""

    steps: np.ndarray
    values: np.ndarray


def plot_runs(
    arms: Mapping[str, Sequence[Seed]], command: str = "", title: str = "", log_entropy: bool = False
) -> Figure:
    """Draw the four panels; only two if the logs have neither weights nor accuracy, like those of a simulation.

    Args:
        arms: label -> the metrics logs of its seeds.
        command: command line that made the figure, for the caption.
        title: heading, for example the model and the task.
        log_entropy: draw entropies on a logarithmic axis, to show collapse and explosion in one panel.

    Raises:
        InputError: no arm, or the seeds of an arm have no step in common.
    """
    with _style() as plt:
        colors = arm_colors(arms)
        rows = 2 if _of_rollouts(arms) else 1
        figure, axes = plt.subplots(rows, 2, figsize=(9.2, 0.7 + 2.7 * rows), dpi=DPI, facecolor="white")
        for panel, panel_axes in zip(PANELS[: 2 * rows], axes.flat, strict=True):
            panel(panel_axes, arms, colors)
        if log_entropy:
            _logarithmic(axes.flat[0])
        _caption(figure, command, title, _legend(figure, arms, colors))
    return figure


def _of_rollouts(arms: Mapping[str, Sequence[Seed]]) -> bool:
    """Check whether any log has weights or accuracy, or all logs are empty."""
    names = {name for seeds in arms.values() for rows in seeds for row in rows for name in row.data}
    return not names or bool(names & {"aer/accuracy/mean", "critic/score/mean", *(f"aer/weight/{b}" for b in BUCKETS)})


def plot_panels(arms: Mapping[str, Sequence[Seed]]) -> list[Figure]:
    """Draw the four panels as separate figures without a legend of the arms, for pages with their own layout.

    Raises the errors of ``plot_runs``.
    """
    figures = []
    with _style() as plt:
        colors = arm_colors(arms)
        for panel in PANELS:
            figure, axes = plt.subplots(figsize=(4.6, 3.1), dpi=DPI, facecolor="white")
            panel(axes, arms, colors)
            figure.tight_layout()
            figures.append(figure)
    return figures


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write `figure` atomically, in the format of the path's suffix."""
    import matplotlib.pyplot as plt

    with replaced_atomically(path) as temporary:
        figure.savefig(temporary, facecolor="white")
    plt.close(figure)


def arm_colors(arms: Iterable[str]) -> dict[str, str]:
    """Assign a color to each label.

    Raises:
        InputError: no label.
    """
    labels = list(arms)
    if not labels:
        raise InputError("no metrics log to plot")
    taken = [COLORS[label] for label in labels if label in COLORS]
    spare = [color for color in SPARE_COLORS if color not in taken]
    others = [label for label in labels if label not in COLORS]
    return {label: COLORS[label] for label in labels if label in COLORS} | {
        label: spare[index % len(spare)] for index, label in enumerate(others)
    }


@contextmanager
def _style() -> Iterator[ModuleType]:
    """Provide matplotlib.pyplot in our style, without a display."""
    require_extra("matplotlib", "a figure")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 9, "font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK}
    with plt.rc_context(style):
        yield plt


def _draw_entropy(axes: Axes, arms: Mapping[str, Sequence[Seed]], colors: Mapping[str, str]) -> None:
    for label, seeds in arms.items():
        _draw(axes, _first_trace(seeds, "aer/entropy", "actor/entropy"), colors[label])
        _draw_target(axes, _first_trace(seeds, "aer/target"), colors[label])
    if axes.has_data():
        # Entropy collapses to 0, so 0 is shown. Accuracy matters by its changes.
        axes.set_ylim(bottom=0.0)
    _label_axes(axes, "Policy entropy and its target (dashed)", "nats per token")


def _logarithmic(axes: Axes) -> None:
    """Set a logarithmic axis from the smallest entropy above 0 to the largest, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    least = values[values > 0].min(initial=np.inf)
    axes.set_yscale("log")
    axes.set_ylim(0.9 * least if np.isfinite(least) else None, None)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_alpha(axes: Axes, arms: Mapping[str, Sequence[Seed]], colors: Mapping[str, str]) -> None:
    for label, seeds in arms.items():
        _draw(axes, _first_trace(seeds, "aer/alpha"), colors[label])
    _label_axes(axes, "Coefficient α", "loss units per nat")


def _draw_buckets(axes: Axes, arms: Mapping[str, Sequence[Seed]], colors: Mapping[str, str]) -> None:
    for label, seeds in arms.items():
        for bucket, (line_style, _) in BUCKETS.items():
            _draw_bucket(axes, _coefficient(seeds, bucket), colors[label], line_style)
    _label_axes(axes, "α · weight", "loss units per nat")
    if axes.lines:
        _bucket_legend(axes)


def _draw_accuracy(axes: Axes, arms: Mapping[str, Sequence[Seed]], colors: Mapping[str, str]) -> None:
    for label, seeds in arms.items():
        # In a log of ours without accuracy, the rewards do not report correctness, so their mean is no share.
        ours = any("aer/alpha" in row.data for rows in seeds for row in rows)
        names = ["aer/accuracy/mean", *([] if ours else ["critic/score/mean"])]
        _draw(axes, _first_trace(seeds, *names), colors[label])
    _label_axes(axes, "Training accuracy", "share of rollouts right")


PANELS = (_draw_entropy, _draw_alpha, _draw_buckets, _draw_accuracy)


def _first_trace(seeds: Sequence[Seed], *names: str) -> Trace | None:
    """Return the first of `names` that every seed logged, over the steps that all seeds have."""
    for name in names:
        pairs = [series(rows, name) for rows in seeds]
        if all(len(steps) for steps, _ in pairs):
            return _align(pairs)
    return None


def _coefficient(seeds: Sequence[Seed], bucket: str) -> Trace | None:
    """Compute alpha * mean weight of the bucket's prompts. Steps without such prompts have no value."""
    pairs = []
    for rows in seeds:
        weight_steps, weight = series(rows, f"aer/weight/{bucket}")
        alpha_steps, alpha = series(rows, "aer/alpha")
        steps, at_weight, at_alpha = np.intersect1d(weight_steps, alpha_steps, return_indices=True)
        if not len(steps):
            return None
        pairs.append((steps, alpha[at_alpha] * weight[at_weight]))
    return _align(pairs)


def _align(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Trace:
    common = pairs[0][0]
    for steps, _ in pairs[1:]:
        common = np.intersect1d(common, steps)
    if not len(common):
        raise InputError("the seeds of one label have no step in common")
    return Trace(common, np.stack([values[np.isin(steps, common)] for steps, values in pairs]))


def centered_mean(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Compute the mean of each value and equally many neighbors on both sides, along the last axis.

        y_t = (x_{t - r} + ... + x_{t + r}) / (2 r + 1),   r = min(w // 2, t - 1, S - t)

    The window shrinks towards both ends, so that a straight line stays the same. The first and the last value are not
    smoothed.

    >>> centered_mean(np.array([1.0, 2.0, 6.0, 7.0]), window=2)
    array([1., 3., 5., 7.])
    """
    length = values.shape[-1]
    # Sum the differences from the first value: rounding must not change a constant coefficient.
    first = values[..., :1]
    summed = np.concatenate([np.zeros_like(first), np.cumsum(values - first, axis=-1)], axis=-1)
    places = np.arange(length)
    reach = np.minimum(window // 2, np.minimum(places, length - 1 - places))
    starts, ends = places - reach, places + reach + 1
    return first + (summed[..., ends] - summed[..., starts]) / (ends - starts)


def _draw(axes: Axes, trace: Trace | None, color: str) -> None:
    """Draw a light raw trace and a bold running mean for one seed; thin lines, band and mean for several."""
    if trace is None:
        return
    smoothed = centered_mean(trace.values)
    if len(trace.values) == 1:
        axes.plot(trace.steps, trace.values[0], color=color, linewidth=0.7, alpha=0.3)
    else:
        axes.fill_between(trace.steps, smoothed.min(axis=0), smoothed.max(axis=0), color=color, alpha=0.13, linewidth=0)
        axes.plot(trace.steps, smoothed.T, color=color, linewidth=0.6, alpha=0.45)
    axes.plot(trace.steps, smoothed.mean(axis=0), color=color, linewidth=2.0, solid_capstyle="round")


def _draw_bucket(axes: Axes, trace: Trace | None, color: str, line_style: object) -> None:
    if trace is not None:
        mean = centered_mean(trace.values).mean(axis=0)
        axes.plot(trace.steps, mean, color=color, linewidth=1.6, linestyle=line_style)


def _draw_target(axes: Axes, trace: Trace | None, color: str) -> None:
    if trace is not None:
        axes.plot(trace.steps, trace.values.mean(axis=0), color=color, linewidth=1.3, linestyle=(0, (4, 2.5)))


def _label_axes(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=8)
    axes.set_ylabel(unit, fontsize=8.5, color=FAINT_INK)
    axes.set_xlabel("global step", fontsize=8.5, color=FAINT_INK)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.tick_params(colors=FAINT_INK, labelsize=8.5, length=3)
    axes.margins(x=0.02)
    if not axes.has_data():
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not in these logs", transform=axes.transAxes, ha="center", color=FAINT_INK)


def _legend(figure: Figure, arms: Mapping[str, Sequence[object]], colors: Mapping[str, str]) -> int:
    """Write the names of the arms below the heading. Returns the number of rows."""
    from matplotlib.lines import Line2D

    names = [arm_name(label, len(seeds)) for label, seeds in arms.items()]
    handles = [Line2D([], [], color=colors[label], linewidth=2.6) for label in arms]
    figure.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(0.008, 1 - 0.25 / figure.get_figheight()),
        ncols=LEGEND_COLUMNS,
        frameon=False,
        fontsize=9,
        columnspacing=1.5,
        handlelength=1.6,
    )
    return -(-len(names) // LEGEND_COLUMNS)


def arm_name(label: str, seeds: int) -> str:
    """Return the name of an arm in a legend.

    >>> arm_name("aer", 1), arm_name("aer", 3)
    ('aer', 'aer (3 seeds)')
    """
    return f"{label} ({seeds} seeds)" if seeds > 1 else label


def _bucket_legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    styles = [Line2D([], [], color=INK, linewidth=1.6, linestyle=style) for style, _ in BUCKETS.values()]
    axes.legend(
        styles,
        [text for _, text in BUCKETS.values()],
        loc="lower right",
        bbox_to_anchor=(1.02, 0.99),
        ncols=len(styles),
        frameon=False,
        fontsize=8,
        handlelength=2.0,
        columnspacing=1.0,
    )


def _caption(figure: Figure, command: str, title: str, legend_rows: int) -> None:
    lines = textwrap.wrap(command, width=140)
    inch = 1 / figure.get_figheight()
    bottom, top = (0.12 + 0.134 * len(lines)) * inch, 1 - (0.27 + 0.21 * legend_rows) * inch
    figure.tight_layout(rect=(0.005, bottom, 0.995, top), h_pad=2.2, w_pad=2.5)
    if title:
        figure.text(0.015, 1 - 0.15 * inch, title, fontsize=11.5, fontweight="bold", va="center")
    if lines:
        figure.text(
            0.015,
            0.012,
            "\n".join(lines),
            fontsize=7,
            family="DejaVu Sans Mono",
            color=FAINT_INK,
            va="bottom",
        )
