"""Define the exit codes and the arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from verl_aer._tables import Table
    from verl_aer.control.metrics import MetricsRow

PROBLEM, BAD_INPUT = 1, 2


def _can_be_written(path: Path | None) -> Path | None:
    """Reject an unwritable output before the work begins."""
    if path is not None:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise typer.BadParameter(f"{folder} is not a folder that you can write to.")
    return path


def output(text: str) -> typer.models.OptionInfo:
    """Declare the option `--out`, a file to write."""
    return typer.Option("--out", dir_okay=False, callback=_can_be_written, show_default=False, help=text)


def examples(*lines: str) -> str:
    """Write the examples below the help of a command."""
    return "\n".join(["Examples:", *(f"  verl-aer {line}" for line in lines)])


Logs = Annotated[
    list[str],
    typer.Argument(metavar="[LABEL=]LOG", help="Metrics logs. Logs with the same label are training seeds."),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]


def labeled(arguments: Sequence[str], default: str) -> dict[str, list[Path]]:
    """Group `label=path` arguments by label. A path without a label gets the label `default`.

    >>> labeled(["aer=a", "b"], default="run")
    {'aer': [PosixPath('a')], 'run': [PosixPath('b')]}
    """
    found: dict[str, list[Path]] = {}
    for argument in arguments:
        label, separator, path = argument.partition("=")
        if not separator:
            label, path = default, argument
        found.setdefault(label, []).append(Path(path))
    return found


def read_arms(logs: Mapping[str, Sequence[Path]]) -> dict[str, list[list[MetricsRow]]]:
    """Read the metrics logs of each label."""
    from verl_aer.reports.metrics_log import read_metrics_log

    return {label: [read_metrics_log(path) for path in paths] for label, paths in logs.items()}


def first_log(logs: Mapping[str, Sequence[Path]]) -> Path:
    return next(iter(logs.values()))[0]


def print_table(table: Table, markdown: bool) -> None:
    from verl_aer._tables import as_markdown, as_text

    print((as_markdown if markdown else as_text)(table), end="")


def import_modules_of_the_user() -> None:
    """Import the modules that veRL imports when it starts, because they may register methods and parts."""
    import importlib

    from verl_aer.errors import InputError

    for name in filter(None, os.environ.get("VERL_USE_EXTERNAL_MODULES", "").replace(" ", "").split(",")):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"VERL_USE_EXTERNAL_MODULES contains {name}, which cannot be imported: {error}") from error
