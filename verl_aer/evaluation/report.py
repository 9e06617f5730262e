"""Write the results of evaluations as table, JSON and figure, and compare several evaluations.

A run is a list of evaluations, one per training seed. Its values are means over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_aer._files import replaced_atomically
from verl_aer._tables import Table
from verl_aer.errors import InputError
from verl_aer.evaluation.statistics import (
    Answers,
    Estimate,
    bootstrap,
    fewest_answers,
    is_significant,
    maj_at_k,
    pass_at_k_of,
    powers_up_to,
)
from verl_aer.extras import require_extra

Run = Sequence[Sequence[Answers]]
INTERVALS = "mean over problems [95 % bootstrap interval over problems]"
TEXT_METRICS = {"tokens": ".1f", "mean NLL": ".3f"}
"""Metrics of the text, which have no interval in the table of one run, with their formats."""


def summary(problems: Sequence[Answers]) -> dict[str, Any]:
    """Compute all numbers of an evaluation, by group, for JSON."""
    groups = groups_of(problems)
    return {name: _summary_of([problems[place] for place in places]) for name, places in groups.items()}


def _summary_of(problems: Sequence[Answers]) -> dict[str, Any]:
    n = fewest_answers(problems)
    tokens = np.concatenate([problem.tokens for problem in problems])
    ks, majority_ks = range(1, n + 1), [k for k in powers_up_to(n) if k > 1]
    majorities = np.array([[maj_at_k(problem, k) for k in majority_ks] for problem in problems])
    (mean_nll,) = bootstrap(np.array([[np.mean(problem.mean_nll)] for problem in problems]))
    return {
        "problems": len(problems),
        "answers": n,
        "pass@k": _by_k(ks, bootstrap(pass_at_k_of(problems, ks))),
        "maj@k": _by_k(majority_ks, bootstrap(majorities)),
        "solved by none": sum(not any(problem.correct) for problem in problems),
        "solved by all": sum(all(problem.correct) for problem in problems),
        "unreadable": float(np.mean([not text for problem in problems for text in problem.texts])),
        "tokens": {
            "mean": float(tokens.mean()),
            **{f"{share:.0%}": float(np.quantile(tokens, share)) for share in (0.05, 0.5, 0.95)},
        },
        "mean NLL": mean_nll._asdict(),
    }


def _by_k(ks: Sequence[int], estimates: Sequence[Estimate]) -> dict[str, dict[str, float]]:
    return {str(k): estimate._asdict() for k, estimate in zip(ks, estimates, strict=True)}


def summary_table(run: Run, ks: Sequence[int] = ()) -> Table:
    """Make the table of one run: one line per group and one column per metric, without intervals for text metrics.

    Args:
        ks: values of k for pass@k; empty: 1, the number of answers, and one between.

    Raises:
        InputError: seeds with different problems, or fewer answers than one of `ks`.
    """
    problems = run[0]
    values = _metrics_of("the run", run, problems, ks or _shown_ks([run]))
    columns = np.stack(list(values.values()), axis=1)
    rows = []
    for name, places in groups_of(problems).items():
        estimates = dict(zip(values, bootstrap(columns[places]), strict=True))
        cells = [
            f"{estimate.mean:{TEXT_METRICS[metric]}}" if metric in TEXT_METRICS else _cell(metric, estimate)
            for metric, estimate in estimates.items()
        ]
        rows.append([name, str(len(places)), *cells])
    return Table(INTERVALS, ["", "problems", *values], rows)


def comparison_table(runs: Mapping[str, Run], ks: Sequence[int] = ()) -> Table:
    """Make the table of several runs: one line per group, metric and run, with the difference from the first run.

    Differences are taken per problem, so that the variation between problems cancels.

    Args:
        runs: label -> run. Metrics that one of the runs lacks are left out.
        ks: as for `summary_table`.

    Raises:
        InputError: runs with different problems, or fewer answers than one of `ks`.
    """
    base = next(iter(runs))
    problems = runs[base][0]
    ks = ks or _shown_ks(runs.values())
    values = {label: _metrics_of(label, run, problems, ks) for label, run in runs.items()}
    metrics = [metric for metric in values[base] if all(metric in of_run for of_run in values.values())]
    rows = []
    for name, places in groups_of(problems).items():
        for metric in metrics:
            columns = np.stack([of_run[metric][places] for of_run in values.values()], axis=1)
            means, differences = bootstrap(columns), bootstrap(columns - columns[:, :1])
            for label, mean, difference in zip(runs, means, differences, strict=True):
                compared = [_cell(metric, difference, "+"), "yes" if is_significant(difference) else "no"]
                cells = [_cell(metric, mean), *(["", ""] if label == base else compared)]
                rows.append([name, str(len(places)), metric, label, *cells])
    return Table(INTERVALS, ["", "problems", "metric", "run", "mean", f"minus {base}", "95 % CI excludes 0"], rows)


def plot_pass_at_k(runs: Mapping[str, Run], title: str, out: Path) -> None:
    """Draw pass@k against k with its interval, one line per run."""
    require_extra("matplotlib", "a figure")
    # Imported here: the import takes half a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, run in runs.items():
        k = range(1, min(map(fewest_answers, run)) + 1)
        curve = bootstrap(np.mean([pass_at_k_of(seed, k) for seed in _aligned(label, run, run[0])], axis=0))
        (line,) = axes.plot(k, [value.mean for value in curve], marker="o" if len(curve) < 40 else "", label=label)
        axes.fill_between(
            k, [value.low for value in curve], [value.high for value in curve], color=line.get_color(), alpha=0.2
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("k, answers per problem")
    axes.set_ylabel("pass@k, mean over problems, 95 % interval")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced_atomically(out) as temporary:
        figure.savefig(temporary, dpi=150)


def groups_of(problems: Sequence[Answers]) -> dict[str, list[int]]:
    """List the indices of the problems of each source and level, if there are several, and of all problems."""
    groups: dict[str, list[int]] = {}
    for names in ([problem.source for problem in problems], [f"level {problem.level}" for problem in problems]):
        if len(set(names)) > 1:
            for name in sorted(set(names)):
                groups[name] = [place for place, its_name in enumerate(names) if its_name == name]
    return groups | {"all": list(range(len(problems)))}


def _shown_ks(runs: Iterable[Run]) -> list[int]:
    """Choose 1, the number of answers that all runs have, and the power of two in the middle."""
    powers = powers_up_to(min(fewest_answers(seed) for run in runs for seed in run))
    return sorted({1, powers[len(powers) // 2], powers[-1]})


def _metrics_of(label: str, run: Run, problems: Sequence[Answers], ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Compute each metric, ``(problems,)``, as the mean over the seeds, in the order of `problems`."""
    seeds = _aligned(label, run, problems)
    n = min(map(fewest_answers, seeds))
    if min(ks) < 1:
        raise InputError(f"--k {min(ks)}: k must be at least 1")
    if max(ks) > n:
        raise InputError(
            f"{label}: pass@{max(ks)} needs {max(ks)} answers per problem, there are {n}; sample more with "
            f"`verl-aer evaluate --n {max(ks)}`, or validate with n={max(ks)} and do_sample=true under "
            "actor_rollout_ref.rollout.val_kwargs"
        )
    passes = np.mean([pass_at_k_of(seed, ks) for seed in seeds], axis=0)
    metrics = {f"pass@{k}": column for k, column in zip(ks, passes.T, strict=True)}
    if n > 1:
        metrics[f"maj@{n}"] = np.mean([[maj_at_k(answers, n) for answers in seed] for seed in seeds], axis=0)
    if all(answers.tokens for seed in seeds for answers in seed):
        metrics["tokens"] = np.mean([[np.mean(answers.tokens) for answers in seed] for seed in seeds], axis=0)
        metrics["mean NLL"] = np.mean([[np.mean(answers.mean_nll) for answers in seed] for seed in seeds], axis=0)
    return metrics


def _aligned(label: str, run: Run, problems: Sequence[Answers]) -> list[list[Answers]]:
    """Sort the answers of every seed in the order of `problems`.

    Raises:
        InputError: the problems differ.
    """
    aligned = []
    for seed in run:
        by_problem = {problem.problem: problem for problem in seed}
        differing = sorted(by_problem.keys() ^ {problem.problem for problem in problems})
        if differing:
            raise InputError(
                f"{label}: the problems differ; {len(differing)} are in only one of two runs, "
                f"such as {differing[0]:.80}"
            )
        aligned.append([by_problem[problem.problem] for problem in problems])
    return aligned


def _cell(metric: str, value: Estimate, sign: str = "") -> str:
    form = sign + TEXT_METRICS.get(metric, ".3f")
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"
