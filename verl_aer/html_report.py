"""A report of one run or several as one HTML file: the figure inside, a table, what to look at, the settings.

It needs nothing beside itself and reads well on a phone: no script, no link to another file.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from verl_aer.plots import plot_runs
from verl_aer.summary import Seed, advice_on_bounds, summarize, summary_table
from verl_aer.tables import as_html

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
    table = summary_table(arms)
    blocks = [
        f"<h1>{html.escape(title)}</h1>",
        f'<img alt="Entropy, coefficient, allocation and accuracy" src="{_figure(arms)}">',
        "<h2>In numbers</h2>",
        f'<div class="wide">{as_html(table)}</div>',
        f"<p>{html.escape(table.title)}.</p>",
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


def _notes(arms: Mapping[str, Sequence[Seed]]) -> list[str]:
    """What a reader should not miss."""
    notes = []
    for label, seeds in arms.items():
        for seed in seeds:
            summary = summarize(seed)
            notes += [f"{label}: {advice}" for advice in advice_on_bounds(summary.held_back, summary.steps)]
            if summary.skipped_updates:
                notes.append(
                    f"{label}: {summary.skipped_updates} entropies were not finite and were skipped. "
                    "Look for NaN in the policy."
                )
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return [f"<h2>Look at</h2><ul>{items}</ul>"] if notes else []


def _settings(label: str, settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    return f"<details><summary>Settings of {html.escape(label)}</summary><pre>{html.escape(text)}</pre></details>"
