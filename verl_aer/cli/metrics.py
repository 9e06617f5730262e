"""`verl-aer metrics`."""

from __future__ import annotations

from verl_aer.cli.arguments import examples

EXAMPLES = examples(
    "metrics",
)


def metrics() -> None:
    """Explain each logged metric: unit, formula, interpretation."""
    from verl_aer.control.metrics import markdown_table

    print(markdown_table(), end="")
