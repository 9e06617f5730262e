"""`verl-aer compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_aer.cli.arguments import Markdown, examples, labeled, output, print_table

EXAMPLES = examples(
    "compare none=runs/none-math500 aer=runs/aer-math500 --k 1 --k 8 --out passes.png",
    "compare before=runs/aer/validation/0.jsonl after=runs/aer/validation/400.jsonl",
    "compare none=none/400.jsonl aer=aer-0/400.jsonl aer=aer-1/400.jsonl --markdown",
)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[LABEL=]PATH",
            help="Folders of `verl-aer evaluate`, or files STEP.jsonl of trainer.validation_data_dir. Several with the "
            "same label are training seeds. All labels are compared with the first one.",
        ),
    ],
    k: Annotated[
        list[int] | None,
        typer.Option(help="k of pass@k. Repeat for several.", show_default="from 1 to the number of answers"),
    ] = None,
    out: Annotated[Path | None, output("Also draw pass@k in this image.")] = None,
    markdown: Markdown = False,
) -> None:
    """Compare evaluations or veRL's validation dumps, per problem."""
    from verl_aer.evaluation.comparison import compare

    arms = labeled([run if "=" in run else f"{Path(run).name}={run}" for run in runs], default="")
    print_table(compare(arms, sorted(set(k or [])), out), markdown)
