"""`verl-aer diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_aer.cli.arguments import examples

EXAMPLES = examples(
    "diagnose runs/aer/train.log",
    "diagnose runs/aer/latest/train.log --exit-code 1",
)


def diagnose(
    log: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Whole output of the run.")],
    exit_code: Annotated[
        int | None,
        typer.Option(
            help="Exit code of the run, negative for a signal. Without it the log shows whether the run failed.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find the cause of a failed run in its output."""
    from verl_aer._failure import explain_failure

    print("\n".join(explain_failure(exit_code, log)))
