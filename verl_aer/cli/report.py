"""`verl-aer report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_aer.cli.arguments import Logs, examples, first_log, labeled, output, read_arms

EXAMPLES = examples(
    "report runs/aer/metrics.jsonl",
    "report none=runs/none-0.jsonl aer=runs/aer-0.jsonl aer=runs/aer-1.jsonl --out report.html",
)


def report(
    context: typer.Context,
    logs: Logs,
    out: Annotated[Path | None, output("Page to write. By default the path of the first log, as .html.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Entropy control",
) -> None:
    """Write one HTML page with figure and settings from the metrics logs of one or more runs."""
    from verl_aer._files import read_json, write_text_atomically
    from verl_aer.control.state_file import entropy_settings_path
    from verl_aer.reports.html_report import html_report

    arms = labeled(logs, default="run")
    files = {label: entropy_settings_path(paths[0]) for label, paths in arms.items()}
    settings = {label: read_json(file) for label, file in files.items() if file.is_file()}
    out = out or first_log(arms).with_suffix(".html")
    write_text_atomically(out, html_report(read_arms(arms), settings, context.obj, title))
    print(f"report: {out}")
