"""`verl-aer methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from verl_aer.cli.arguments import examples, import_modules_of_the_user, print_table

EXAMPLES = examples("methods", "methods aer")


def methods(
    name: Annotated[str | None, typer.Argument(help="Method to explain in full.", show_default=False)] = None,
) -> None:
    """List the registered methods, or explain one of them."""
    from verl_aer.reports.method_catalog import explanation, method_table

    import_modules_of_the_user()
    if name is None:
        print_table(method_table(), markdown=False)
    else:
        print(explanation(name), end="")
