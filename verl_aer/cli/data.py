"""`verl-aer data`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from verl_aer.cli.arguments import PROBLEM, examples
from verl_aer.errors import InputError

EXAMPLES = examples("data inspect data/dapo_math_17k.parquet", "data inspect data/mine.parquet --strict")

app = typer.Typer(no_args_is_help=True, help="Inspect training and evaluation data.")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A prepared parquet file.", show_default=False)],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 if a row is bad.")] = False,
) -> None:
    """Summarize a prepared parquet file and check that veRL can train on each row."""
    import json

    from verl_aer._tables import as_text
    from verl_aer.data.inspect import inspect

    bad_rows = file.with_suffix(".bad.jsonl")
    found = inspect(file, bad_rows)
    print("\n".join(as_text(table) for table in found.tables()))
    if found.first is not None:
        print(f"the first row\n{json.dumps(found.first, indent=2, ensure_ascii=False, default=str)}")
    if found.bad:
        print(f"bad rows: {bad_rows}", file=sys.stderr)
    if not found.rows or len(found.bad) == found.rows:
        raise InputError(f"{file}: veRL cannot train on any row")
    if strict and found.bad:
        raise typer.Exit(PROBLEM)
