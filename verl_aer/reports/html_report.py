"""Write one or more runs as one HTML file with figure, table, advice and settings.

The file is self-contained, without scripts or links to other files, and readable on a phone.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from verl_aer._tables import as_html
from verl_aer.reports.plots import arm_colors, arm_name, plot_panels
from verl_aer.reports.summary import Seed, advice_on_bounds, summarize, summary_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: .5rem; }
img { width: 100%; height: auto; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #8884; }
th { vertical-align: bottom; } td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
pre { background: #8881; padding: .7rem; border-radius: 6px; }
"""


def html_report(
    arms: Mapping[str, Sequence[Seed]],
    settings: Mapping[str, Mapping[str, Any]],
    command: str = "",
    title: str = "Entropy control",
) -> str:
    """Write the page.

    Args:
        arms: label -> the metrics logs of its seeds.
        settings: label -> the run's `entropy` settings, for the labels that have some.
        command: command line that made the report.
        title: heading of the page.
    """
    table = summary_table(arms)
    blocks = [
        f"<h1>{html.escape(title)}</h1>",
        _legend(arms),
        _panels(arms),
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


def _legend(arms: Mapping[str, Sequence[Seed]]) -> str:
    colors = arm_colors(arms)
    names = {label: html.escape(arm_name(label, len(seeds))) for label, seeds in arms.items()}
    marks = [f'<span style="color:{colors[label]}">■</span> {names[label]}' for label in arms]
    return f"<p>{' &nbsp; '.join(marks)}</p>"


def _panels(arms: Mapping[str, Sequence[Seed]]) -> str:
    """Lay out the panels in two columns, or in one on a narrow screen."""
    images = [f'<img alt="{html.escape(name)}" src="{source}">' for name, source in map(_image, plot_panels(arms))]
    return f'<div class="panels">{"".join(images)}</div>'


def _image(figure: Figure) -> tuple[str, str]:
    """Return the title of a figure, and the figure as a data URL."""
    import matplotlib.pyplot as plt

    image = io.BytesIO()
    figure.savefig(image, format="png", facecolor="white")
    plt.close(figure)
    source = f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"
    return figure.axes[0].get_title(loc="left"), source


def _notes(arms: Mapping[str, Sequence[Seed]]) -> list[str]:
    """Collect advice and warnings about the runs."""
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
