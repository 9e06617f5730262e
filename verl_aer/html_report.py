"""A report of one run or several as one HTML file: the figure inside, a table, what to look at, the settings.

It needs nothing beside itself and reads well on a phone: no script, no link to another file.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from verl_aer.metrics_log import series
from verl_aer.plots import WINDOW, Seed, plot_runs

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; background: #8881; padding: .7rem; border-radius: 6px; font-size: .8rem; }
"""


class Column(NamedTuple):
    """A column of the table: heading, metric, and which of its values."""

    heading: str
    metric: str
    value: str


COLUMNS = (
    Column("entropy, start", "aer/entropy", "first"),
    Column("entropy, end", "aer/entropy", "last mean"),
    Column("target", "aer/target", "last"),
    Column("α, largest", "aer/alpha", "largest"),
    Column("α, end", "aer/alpha", "last"),
    Column("saturated steps", "aer/saturated_steps", "last"),
    Column("skipped updates", "aer/skipped_updates", "last"),
    Column("accuracy, start", "aer/accuracy/mean", "first mean"),
    Column("accuracy, end", "aer/accuracy/mean", "last mean"),
)


def html_report(
    arms: Mapping[str, Sequence[Seed]],
    settings: Mapping[str, Mapping[str, Any]],
    command: str = "",
    title: str = "Entropy control",
) -> str:
    """The whole page.

    Args:
        arms: label -> the metrics logs of its seeds.
        settings: label -> the run's `entropy` settings, for the labels that have some.
        command: what made the report.
        title: its heading.
    """
    blocks = [
        f"<h1>{html.escape(title)}</h1>",
        f'<img alt="Entropy, coefficient, allocation and accuracy" src="{_figure(arms)}">',
        "<h2>In numbers</h2>",
        _table(arms),
        f"<p>Means are of {WINDOW} steps and of all seeds; entropy in nats a token, α in loss units per nat.</p>",
        *_notes(arms),
        *(_settings(label, settings[label]) for label in arms if label in settings),
        f"<h2>Made with</h2><pre>{html.escape(command)}</pre>" if command else "",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(block for block in blocks if block)
        + "\n</body>\n</html>\n"
    )


def _figure(arms: Mapping[str, Sequence[Seed]]) -> str:
    import matplotlib.pyplot as plt

    figure = plot_runs(arms)
    image = io.BytesIO()
    figure.savefig(image, format="png", facecolor="white")
    plt.close(figure)
    return f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"


def _table(arms: Mapping[str, Sequence[Seed]]) -> str:
    header = "".join(f"<th>{html.escape(text)}</th>" for text in ("", "seeds", "steps", *(c.heading for c in COLUMNS)))
    rows = []
    for label, seeds in arms.items():
        steps = min(seed[-1].step for seed in seeds)
        cells = [label, str(len(seeds)), str(steps), *(_cell(seeds, column) for column in COLUMNS)]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table><tr>{header}</tr>{"".join(rows)}</table></div>'


def _cell(seeds: Sequence[Seed], column: Column) -> str:
    values = [_value(seed, column.metric, column.value) for seed in seeds]
    if any(value is None for value in values):
        return "–"
    return f"{sum(values) / len(values):.3g}"


def _value(seed: Seed, metric: str, which: str) -> float | None:
    """One number of a metric; None if it was never logged."""
    _, values = series(seed, metric)
    if not len(values):
        return None
    chosen = {
        "first": values[:1],
        "last": values[-1:],
        "first mean": values[:WINDOW],
        "last mean": values[-WINDOW:],
        "largest": [values.max()],
    }
    return float(sum(chosen[which]) / len(chosen[which]))


def _notes(arms: Mapping[str, Sequence[Seed]]) -> list[str]:
    """What a reader should not miss."""
    notes = []
    for label, seeds in arms.items():
        saturated = max(_value(seed, "aer/saturated_steps", "last") or 0 for seed in seeds)
        if saturated:
            notes.append(
                f"{label}: a bound held α back in {saturated:.0f} steps. If the entropy is still off its target, raise "
                "entropy.controller.maximum."
            )
        skipped = max(_value(seed, "aer/skipped_updates", "last") or 0 for seed in seeds)
        if skipped:
            notes.append(
                f"{label}: {skipped:.0f} entropies were not finite and were skipped. Look for NaN in the policy."
            )
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return [f"<h2>Look at</h2><ul>{items}</ul>"] if notes else []


def _settings(label: str, settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    return f"<details><summary>Settings of {html.escape(label)}</summary><pre>{html.escape(text)}</pre></details>"
