"""`verl-aer simulate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_aer.cli.arguments import PROBLEM, examples, import_modules_of_the_user, output
from verl_aer.errors import InputError

if TYPE_CHECKING:
    from verl_aer.config.schema import EntropyConfig
    from verl_aer.control.metrics import MetricsRow

EXAMPLES = examples(
    "simulate",
    "simulate aer --set controller.ki=0.1 --steps 300 --out plant.png",
    "simulate none fixed aer aer_absolute_target --steps 400 --out methods.png",
    "simulate --generalization 0.5 --multiplicative --steps 2000 --set controller.ki=0.005",
    "simulate --replay runs/aer/metrics.jsonl",
)

REPLAY_TOLERANCE = 1e-12
"""Loss units per nat. Log and replay perform the same float64 operations, and the log keeps every digit."""

SHOWN = {
    "aer/entropy": "entropy, nats/token",
    "aer/entropy/hard": "of hard prompts",
    "aer/entropy/easy": "of easy prompts",
    "aer/alpha": "alpha, loss/nat",
}

SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 60


def simulate(
    context: typer.Context,
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHOD", help="Names from `verl-aer methods`.", show_default="aer"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[METHOD:]KEY=VALUE",
            help="A key below `entropy`, such as target.tau=0.6, for all methods or one. Repeat for several.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Global steps.")] = 200,
    noise: Annotated[float, typer.Option(help="Standard deviation of the measured entropy, nats per token.")] = 0.01,
    multiplicative: Annotated[
        bool, typer.Option("--multiplicative", help="A step changes the logarithm of the entropy.")
    ] = False,
    generalization: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Simulate many prompts, of which fewer and fewer are hard. SHARE of a push, 0 to 1, reaches all.",
        ),
    ] = None,
    out: Annotated[Path | None, output("Also write a figure to this file.")] = None,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="LOG", help="Recompute each alpha of this metrics log. Exit code 1 if any differs."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Entropy settings of the run to replay.", show_default="LOG.entropy.json, which the run writes"
        ),
    ] = None,
) -> None:
    """Run the entropy control on a synthetic policy, or replay it from the log of a run."""
    import_modules_of_the_user()
    if replay is not None:
        _replay(replay, config)
        return
    configs = {name: _entropy_config(name, settings or []) for name in methods or ["aer"]}
    runs = _runs(configs, steps, noise, multiplicative, generalization)
    for name, rows in runs.items():
        print(f"{name} on a synthetic plant, {steps} steps: it illustrates the control and does not model a policy")
        if configs[name].has_shaping_without_alpha:
            print("  (its shaping of rewards or advantages has no effect on the plant)")
        _print_series(rows)
    if out is not None:
        from verl_aer.reports.plots import plot_runs, save_figure

        arms = {name: [rows] for name, rows in runs.items()}
        save_figure(plot_runs(arms, command=context.obj, title="Synthetic plant"), out)
        print(f"figure: {out}")


def _runs(
    configs: Mapping[str, EntropyConfig], steps: int, noise: float, multiplicative: bool, generalization: float | None
) -> dict[str, list[MetricsRow]]:
    from verl_aer.control.simulation import Plant, Population, simulate, simulate_population

    plant = Plant(noise=noise, gain=10.0 if multiplicative else 0.15, multiplicative=multiplicative)
    if generalization is None:
        return {name: simulate(config, plant, steps) for name, config in configs.items()}
    population = Population(plant, generalization)
    return {name: simulate_population(config, population, steps) for name, config in configs.items()}


def _print_series(rows: Sequence[MetricsRow]) -> None:
    from verl_aer.reports.metrics_log import series

    for metric, text in SHOWN.items():
        _, values = series(rows, metric)
        if len(values):
            print(f"{text:>20}  {sparkline(values)}  {values[0]:.3f} → {values[-1]:.3f}")
    _, targets = series(rows, "aer/target")
    if len(targets):
        print(f"{'target, nats/token':>20}  {targets[-1]:.3f}")


def _replay(log: Path, config: Path | None) -> None:
    from verl_aer._files import read_json
    from verl_aer.config.schema import parse_entropy_config
    from verl_aer.control.simulation import replay
    from verl_aer.control.state_file import entropy_settings_path
    from verl_aer.reports.metrics_log import read_metrics_log

    config = config or entropy_settings_path(log)
    if not config.is_file():
        raise InputError(f"{config}: no such file; pass the run's entropy settings with --config FILE")
    result = replay(read_metrics_log(log), parse_entropy_config(read_json(config)))
    difference = result.largest_difference
    print(f"{log}: {len(result.steps)} alphas recomputed, largest difference {difference:.3g}")
    # NaN compares false, and counts as a difference.
    if not difference <= REPLAY_TOLERANCE:
        first = next(step for step in result.steps if not abs(step.logged - step.recomputed) <= REPLAY_TOLERANCE)
        print(f"first at step {first.step}: logged {first.logged!r}, recomputed {first.recomputed!r}")
        raise typer.Exit(PROBLEM)


def _entropy_config(method: str, settings: Sequence[str]) -> EntropyConfig:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from verl_aer.config.schema import parse_entropy_config

    try:
        node = OmegaConf.merge({"method": method}, OmegaConf.from_dotlist(_settings_for(method, settings)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(f"--set: {error}") from error
    return parse_entropy_config(node)


def _settings_for(method: str, settings: Sequence[str]) -> list[str]:
    """Select the settings for all methods, and those of the form ``method:key=value`` for this one.

    >>> _settings_for("aer", ["target.tau=0.6", "aer:controller.ki=0.1", "aent:measure.p=0.3"])
    ['target.tau=0.6', 'controller.ki=0.1']
    """
    found = []
    for setting in settings:
        name, colon, rest = setting.partition(":")
        if not colon or "=" in name:
            found.append(setting)
        elif name == method:
            found.append(rest)
    return found


def sparkline(values: Sequence[float]) -> str:
    """Draw `values` from their lowest to their highest, averaged down to at most `SPARKLINE_WIDTH` characters.

    >>> sparkline([0.0, 1.0, 2.0, 7.0])
    '▁▂▃█'
    """
    import numpy as np

    cells = [part.mean() for part in np.array_split(np.asarray(values), min(len(values), SPARKLINE_WIDTH))]
    low, high = min(cells), max(cells)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((cell - low) * scale)] for cell in cells)
