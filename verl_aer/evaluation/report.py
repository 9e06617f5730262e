"""An evaluation in a table, in JSON and as a figure; several of them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_aer._files import replaced_atomically
from verl_aer._tables import Table
from verl_aer.errors import InputError
from verl_aer.evaluation.pass_at_k import Estimate, cell, estimate
from verl_aer.evaluation.statistics import (
    Answers,
    curve_estimates,
    is_real,
    majority_estimates,
    paired_difference,
    powers_up_to,
)
from verl_aer.extras import require_extra

ALL = "all"


def groups_of(problems: Sequence[Answers]) -> dict[str, list[Answers]]:
    """By data source, by level where there is more than one, and all."""
    groups: dict[str, list[Answers]] = {}
    sources, levels = ({getattr(problem, key) for problem in problems} for key in ("source", "level"))
    if len(sources) > 1:
        for source in sorted(sources):
            groups[source] = [problem for problem in problems if problem.source == source]
    if len(levels) > 1:
        for level in sorted(levels):
            groups[f"level {level}"] = [problem for problem in problems if problem.level == level]
    return groups | {ALL: list(problems)}


def summary(problems: Sequence[Answers]) -> dict[str, Any]:
    """Every number of an evaluation, by group, for JSON."""
    return {name: _of_group(group) for name, group in groups_of(problems).items()}


def _of_group(problems: Sequence[Answers]) -> dict[str, Any]:
    tokens = np.concatenate([problem.tokens for problem in problems])
    return {
        "problems": len(problems),
        "answers": len(problems[0].correct),
        "pass@k": {str(k): _plain(value) for k, value in enumerate(curve_estimates(problems), start=1)},
        "maj@k": {str(k): _plain(value) for k, value in majority_estimates(problems).items()},
        "solved by none": sum(not any(problem.correct) for problem in problems),
        "solved by all": sum(all(problem.correct) for problem in problems),
        "unreadable": float(np.mean([not text for problem in problems for text in problem.written])),
        "tokens": {
            "mean": float(tokens.mean()),
            **{f"{share:.0%}": float(np.quantile(tokens, share)) for share in (0.05, 0.5, 0.95)},
        },
        "nats a token": _plain(estimate(np.array([np.mean(problem.nats) for problem in problems]))),
    }


def _plain(value: Estimate) -> dict[str, float]:
    return {"mean": value.mean, "low": value.low, "high": value.high}


def summary_table(problems: Sequence[Answers]) -> Table:
    """A line for each group: avg@n, some pass@k and maj@n, lengths, -log pi of the sampled tokens."""
    n = len(problems[0].correct)
    ks = [k for k in powers_up_to(n) if k > 1]
    shown = ks[-1:] if len(ks) < 3 else [ks[len(ks) // 2], ks[-1]]
    header = ["", "problems", f"avg@{n}", *(f"pass@{k}" for k in shown), *([f"maj@{n}"] if n > 1 else [])]
    rows = []
    for name, group in groups_of(problems).items():
        curve = curve_estimates(group)
        cells = [cell(curve[0]), *(cell(curve[k - 1]) for k in shown)]
        cells += [cell(majority_estimates(group)[n])] if n > 1 else []
        tokens = np.mean([np.mean(problem.tokens) for problem in group])
        nats = np.mean([np.mean(problem.nats) for problem in group])
        rows.append([name, str(len(group)), *cells, f"{tokens:.1f}", f"{nats:.3f}"])
    return Table(
        "mean over problems [95 % bootstrap interval over problems]", [*header, "tokens", "nats a token"], rows
    )


def comparison_table(runs: Mapping[str, Sequence[Answers]], ks: Sequence[int]) -> Table:
    """The runs side by side, and the difference of each to the first, with whether it is real.

    Raises:
        InputError: runs of other problems, or a k that a run has not enough answers for.
    """
    (base, first), *others = runs.items()
    for label, problems in runs.items():
        least = min(len(problem.correct) for problem in problems)
        if max(ks) > least:
            raise InputError(f"{label}: pass@{max(ks)} needs {max(ks)} answers a problem, there are {least}")
    header = ["metric", base, *(cell for label, _ in others for cell in (label, f"{label} - {base}", "real"))]
    rows = []
    for k in ks:
        cells = [cell(curve_estimates(first)[k - 1])]
        for _, problems in others:
            difference = paired_difference(first, problems, k)
            real = "yes" if is_real(difference) else "no"
            cells += [cell(curve_estimates(problems)[k - 1]), cell(difference, signed=True), real]
        rows.append([f"pass@{k}", *cells])
    title = "mean over problems [95 % bootstrap interval]; differences problem by problem, real if the interval lacks 0"
    return Table(title, header, rows)


def plot_pass_at_k(runs: Mapping[str, Sequence[Answers]], title: str, out: Path) -> None:
    """pass@k over k, with its interval, a line for each run."""
    require_extra("matplotlib", "a figure")
    # Imported here: half a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, problems in runs.items():
        curve = curve_estimates(problems)
        k = np.arange(1, len(curve) + 1)
        (line,) = axes.plot(k, [value.mean for value in curve], marker="o" if len(curve) < 40 else "", label=label)
        axes.fill_between(
            k, [value.low for value in curve], [value.high for value in curve], color=line.get_color(), alpha=0.2
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("k, answers to a problem")
    axes.set_ylabel("pass@k, mean over problems, 95 % interval")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced_atomically(out) as temporary:
        figure.savefig(temporary, dpi=150)
