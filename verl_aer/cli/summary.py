"""`verl-aer summary`."""

from __future__ import annotations

from verl_aer.cli.arguments import Logs, Markdown, examples, labeled, print_table, read_arms

EXAMPLES = examples(
    "summary runs/aer/metrics.jsonl",
    "summary none=runs/none-0.jsonl aer=runs/aer-0.jsonl aer=runs/aer-1.jsonl --markdown",
)


def summary(logs: Logs, markdown: Markdown = False) -> None:
    """Print one line per run: entropy, the step at which it reached its target, alpha, accuracy."""
    from verl_aer.reports.summary import summary_table

    print_table(summary_table(read_arms(labeled(logs, default="run"))), markdown)
