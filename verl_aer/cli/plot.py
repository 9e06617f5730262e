"""`verl-aer plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_aer.cli.arguments import Logs, examples, first_log, labeled, output, read_arms

EXAMPLES = examples(
    "plot runs/aer/metrics.jsonl",
    "plot none=runs/none-0.jsonl aer=runs/aer-0.jsonl aer=runs/aer-1.jsonl --out arms.png",
)


def plot(
    context: typer.Context,
    logs: Logs,
    out: Annotated[Path | None, output("Image to write. By default the path of the first log, as .png.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the figure.", show_default=False)] = "",
    log_entropy: Annotated[bool, typer.Option("--log-entropy", help="Draw entropies on a logarithmic axis.")] = False,
) -> None:
    """Draw entropy, coefficient and accuracy of metrics logs in one figure."""
    from verl_aer.reports.plots import plot_runs, save_figure

    arms = labeled(logs, default="run")
    out = out or first_log(arms).with_suffix(".png")
    save_figure(plot_runs(read_arms(arms), command=context.obj, title=title, log_entropy=log_entropy), out)
    print(f"figure: {out}")
