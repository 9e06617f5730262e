"""`verl-aer doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from verl_aer.cli.arguments import examples

EXAMPLES = examples(
    "doctor",
    "doctor +entropy=aer data.train_files=train.parquet data.val_files=dev.parquet",
    "doctor --config-path pkg://my_recipe.config --config-name my_trainer +entropy=aer",
)


def doctor(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="OVERRIDE", help="Hydra overrides of a run whose config to check."),
    ] = None,
    config_name: Annotated[str, typer.Option(help="Primary config, as for veRL's command.")] = "ppo_trainer",
    config_path: Annotated[
        str, typer.Option(help="Package of the config, as for veRL's command.")
    ] = "pkg://verl.trainer.config",
    no_local_checks: Annotated[
        bool, typer.Option("--no-local-checks", help="Check only the config, for a run on another machine.")
    ] = False,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Check only the config and the data of the run, not the packages.")
    ] = False,
    show_config: Annotated[bool, typer.Option("--show-config", help="Also print the composed config.")] = False,
) -> None:
    """Report what is installed, what is missing, and which command fixes it."""
    from verl_aer.launch.doctor import doctor

    code = doctor(
        overrides or [],
        config_name,
        config_path,
        no_local_checks=no_local_checks,
        config_only=config_only,
        show_config=show_config,
    )
    raise typer.Exit(code)
