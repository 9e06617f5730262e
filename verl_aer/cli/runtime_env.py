"""`verl-aer runtime-env`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_aer.cli.arguments import examples, output

EXAMPLES = examples(
    "runtime-env --out runtime_env.yaml",
    "runtime-env --module my_methods --env HF_HOME=/shared/huggingface --out runtime_env.yaml",
)


def runtime_env(
    out: Annotated[Path | None, output("File to write. By default the text is printed.")] = None,
    module: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Another package to ship and load. Repeat for several."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An environment variable for every node. Repeat for several."),
    ] = None,
) -> None:
    """Write a runtime environment for `ray job submit` that ships this package to every node."""
    from verl_aer._files import write_text_atomically
    from verl_aer.launch.runtime_env import runtime_env_yaml

    text = runtime_env_yaml(module or [], env or [])
    if out is None:
        print(text, end="")
    else:
        write_text_atomically(out, text)
