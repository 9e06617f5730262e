"""Collect the commands, and print the exceptions of this package as one line.

Exit codes: 0 fine, 1 a problem was found, 2 bad usage or input.

Each command imports its dependencies when it runs: `verl-aer doctor` must work even if torch is missing or broken.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

import typer
from typer.core import TyperGroup

from verl_aer.cli import (
    cluster,
    compare,
    data,
    diagnose,
    doctor,
    evaluate,
    methods,
    metrics,
    plot,
    report,
    runtime_env,
    simulate,
    summary,
)
from verl_aer.cli.arguments import BAD_INPUT
from verl_aer.errors import VerlAerError


class Commands(TyperGroup):
    """Run a command and print bad input as one line. Any other exception is a bug and keeps its traceback."""

    def invoke(self, context: typer.Context) -> object:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            # The reader, such as `head`, closed the pipe. Without this, the interpreter's last flush would raise again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None
        except VerlAerError as error:
            print(f"verl-aer {context.invoked_subcommand}: {error}", file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from error


app = typer.Typer(
    cls=Commands,
    help="Entropy control for veRL: check a run before it starts, and evaluate it afterwards.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

for panel, modules in {
    "Before a run": (doctor, cluster, runtime_env),
    "Methods": (methods, metrics, simulate),
    "After a run": (summary, plot, report, diagnose),
    "Data and evaluation": (evaluate, compare),
}.items():
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        app.command(name.replace("_", "-"), rich_help_panel=panel, epilog=module.EXAMPLES)(getattr(module, name))
app.add_typer(data.app, name="data", rich_help_panel="Data and evaluation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Figures and pages show the command line.
        app(words, prog_name="verl-aer", obj=shlex.join(["verl-aer", *words]))
    except SystemExit as end:
        return end.code
