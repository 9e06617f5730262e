"""The command `verl-aer`. Training itself is veRL's own command; this one looks before and after.

Exit codes: 0 fine, 1 a problem was found, 2 bad usage or input.

Every subcommand imports what it needs when it runs: `verl-aer doctor` has to work where nothing else does.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verl_aer.errors import InputError, VerlAerError

if TYPE_CHECKING:
    from verl_aer._tables import Table
    from verl_aer.config.schema import EntropyConfig
    from verl_aer.control.metrics import MetricsRow

OK, PROBLEM, BAD_INPUT = 0, 1, 2

REPLAY_TOLERANCE = 1e-12
"""Loss units per nat. Log and replay do the same float64 operations, and the log keeps every digit."""

SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(arguments)
    args.command_line = shlex.join(["verl-aer", *arguments])
    try:
        return args.run(args)
    except BrokenPipeError:
        # Whoever reads, `head` for one, has read enough; the interpreter's own last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (VerlAerError, OSError) as error:
        # Bad input, or a file that cannot be read or written. Any other exception is a bug and keeps its traceback.
        print(f"verl-aer {args.subcommand}: {error}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verl-aer",
        description="Entropy control for veRL: look before a run, and after it.",
        epilog=_examples("doctor", "methods", "simulate --out plant.png", "plot runs/aer/metrics.jsonl"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)

    doctor = _add(
        commands,
        "doctor",
        "what is installed, what is missing, and the command that fixes it",
        _doctor,
        "doctor",
        "doctor +entropy=aer data.train_files=train.parquet data.val_files=test.parquet",
        "doctor --config-path pkg://verl_aer.config --config-name aer_trainer entropy=aer hardware=cpu",
        "doctor --cluster",
        "doctor --cluster 10.0.0.1:6379 --nodes n1 n2 --gpus-per-node 8 --wait 300 --shared /shared/runs",
    )
    doctor.add_argument("--config-name", default="ppo_trainer", help="as for veRL's command")
    doctor.add_argument(
        "--config-path", default="pkg://verl.trainer.config", help="as for veRL's command, a pkg:// path"
    )
    doctor.add_argument(
        "--elsewhere", action="store_true", help="check the run's config for another machine, and nothing of this one"
    )
    doctor.add_argument("--config-only", action="store_true", help="check the run's config and data, no packages")
    doctor.add_argument("--show-config", action="store_true", help="print the composed config too")
    doctor.add_argument("overrides", nargs="*", help="Hydra overrides of a run to check without starting it")
    cluster = doctor.add_argument_group("a running Ray cluster, looked at node by node")
    cluster.add_argument("--cluster", nargs="?", const="auto", metavar="HOST:PORT", help="its head (default: this one)")
    cluster.add_argument("--nodes", nargs="+", default=[], metavar="NAME", help="nodes that have to be there")
    cluster.add_argument("--gpus-per-node", type=int, default=0, help="GPUs that each of them has to bring")
    cluster.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="how long to wait for them")
    cluster.add_argument("--only-wait", action="store_true", help="wait for them, and look no further")
    cluster.add_argument("--shared", type=Path, help="folder that all nodes share (default: this one)")

    carried = _add(
        commands,
        "runtime-env",
        "a runtime environment for `ray job submit` that carries this package to every node of a cluster",
        _runtime_env,
        "runtime-env --out runtime_env.yaml",
        "runtime-env --module my_methods --env HF_HOME=/shared/huggingface --out runtime_env.yaml",
    )
    carried.add_argument("--out", type=Path, help="file to write (default: print it)")
    carried.add_argument(
        "--module", type=Path, action="append", default=[], metavar="FOLDER", help="carry this package too, and load it"
    )
    carried.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable on every node")

    simulate = _add(
        commands,
        "simulate",
        "the control around a synthetic entropy plant, or replayed from a run's log",
        _simulate,
        "simulate",
        "simulate --method aer --set controller.ki=0.1 --steps 300 --out plant.png",
        "simulate --method none fixed aer aer_absolute_target --steps 400 --out methods.png",
        "simulate --generalization 0.5 --multiplicative --steps 2000 --set controller.ki=0.005",
        "simulate --replay runs/aer/metrics.jsonl",
    )
    simulate.add_argument(
        "--method", nargs="+", default=["aer"], help="one or several, as `verl-aer methods` lists them (default aer)"
    )
    simulate.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="[METHOD:]KEY=VALUE",
        help="a key below `entropy`, such as target.tau=0.6, for each method or one; may be repeated",
    )
    simulate.add_argument("--steps", type=int, default=200, help="global steps (default 200)")
    simulate.add_argument("--noise", type=float, default=0.01, help="of the measured entropy, nats (default 0.01)")
    simulate.add_argument(
        "--multiplicative", action="store_true", help="a step changes the logarithm of the entropy, and no level rests"
    )
    simulate.add_argument(
        "--generalization",
        type=float,
        metavar="SHARE",
        help="around many prompts, of which ever fewer are hard: SHARE of a push reaches all alike, from 0 to 1",
    )
    simulate.add_argument("--out", type=Path, help="also write the figure here")
    simulate.add_argument(
        "--replay", type=Path, metavar="LOG", help="recompute every alpha of this metrics log; exit 1 if one differs"
    )
    simulate.add_argument(
        "--config", type=Path, help="the run's entropy settings (default: <LOG>.entropy.json, which the run writes)"
    )

    plot = _add(
        commands,
        "plot",
        "one figure of entropy, coefficient and accuracy from metrics logs",
        _plot,
        "plot runs/aer/metrics.jsonl",
        "plot none=runs/none-0.jsonl aer=runs/aer-0.jsonl aer=runs/aer-1.jsonl --out arms.png",
    )
    _add_logs(plot)
    _add_out(plot, "image", ".png")
    plot.add_argument("--title", default="", help="heading of the figure")
    plot.add_argument("--log-entropy", action="store_true", help="entropies on a logarithmic axis")

    report = _add(
        commands,
        "report",
        "one HTML page of a run or several, figure and settings inside, from their metrics logs",
        _report,
        "report runs/aer/metrics.jsonl",
        "report none=runs/none-0.jsonl aer=runs/aer-0.jsonl aer=runs/aer-1.jsonl --out report.html",
    )
    _add_logs(report)
    _add_out(report, "page", ".html")
    report.add_argument("--title", default="Entropy control", help="heading of the page")

    summary = _add(
        commands,
        "summary",
        "a line for each run from its metrics log: entropy, when it arrived at its target, alpha, accuracy",
        _summary,
        "summary runs/aer/metrics.jsonl",
        "summary none=runs/none-0.jsonl aer=runs/aer-0.jsonl aer=runs/aer-1.jsonl --markdown",
    )
    _add_logs(summary)
    _add_markdown(summary)

    methods = _add(
        commands,
        "methods",
        "the registered methods, or one of them in full",
        _methods,
        "methods",
        "methods aer",
    )
    methods.add_argument("name", nargs="?", help="the method to explain")
    methods.add_argument("--markdown", action="store_true", help="print the page docs/methods.md")

    data = _add(
        commands,
        "data",
        "look at a prepared parquet file, and check that veRL can train on each of its rows",
        _data,
        "data inspect data/dapo_math_17k.parquet",
        "data inspect data/mine.parquet --strict",
    )
    data.add_argument("action", choices=["inspect"])
    data.add_argument("file", type=Path)
    data.add_argument("--strict", action="store_true", help="exit 1 if a row is bad")

    evaluate = _add(
        commands,
        "evaluate",
        "sample answers with vLLM; pass@k, maj@k, lengths and entropy with their intervals",
        _evaluate,
        "evaluate Qwen/Qwen3-1.7B-Base --data data/aime24.parquet data/math500.parquet --n 32",
        "evaluate checkpoints/aer/global_step_200 --data data/math500.parquet --n 8 --out runs/aer-math500",
    )
    evaluate.add_argument("model", help="a model's name or folder, or a checkpoint of veRL (global_step_N)")
    evaluate.add_argument("--data", type=Path, nargs="+", required=True, help="prepared parquet files")
    evaluate.add_argument(
        "--out", type=Path, help="folder of the evaluation (default: evaluations/<model's last name>)"
    )
    evaluate.add_argument("--n", type=int, default=32, help="answers to each problem (default 32)")
    evaluate.add_argument("--temperature", type=float, default=1.0, help="(default 1.0)")
    evaluate.add_argument("--top-p", type=float, default=1.0, help="(default 1.0)")
    evaluate.add_argument("--max-tokens", type=int, default=2048, help="of an answer (default 2048)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the answers (default 0)")
    evaluate.add_argument(
        "--reward",
        default="verl_aer.rewards.math_reward:compute_score",
        metavar="MODULE:FUNCTION",
        help="as veRL's custom_reward_function; or PATH.py:FUNCTION (default: the math reward)",
    )
    evaluate.add_argument("--batch", type=int, default=64, help="problems that are sampled together (default 64)")
    evaluate.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that one copy of the model takes")
    evaluate.add_argument("--data-parallel", type=int, default=1, help="copies of the model, each with its own GPUs")

    compare = _add(
        commands,
        "compare",
        "evaluations or veRL's validation dumps side by side, with their differences problem by problem",
        _compare,
        "compare none=runs/none-math500 aer=runs/aer-math500 --k 1 8 --out compared.png",
        "compare before=runs/aer/validation/0.jsonl after=runs/aer/validation/400.jsonl",
        "compare none=none/400.jsonl aer=aer-0/400.jsonl aer=aer-1/400.jsonl --k 1 4 8 --markdown",
    )
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]PATH",
        help="folders of `verl-aer evaluate`, or <step>.jsonl files of trainer.validation_data_dir; several with one "
        "label are its training seeds, and all labels are compared with the first",
    )
    compare.add_argument("--k", type=int, nargs="+", default=[], help="numbers of tries (default: 1 to all answers)")
    compare.add_argument("--out", type=Path, help="also draw pass@k here")
    _add_markdown(compare)

    why = _add(
        commands,
        "why",
        "what a failed run died of, from its output",
        _why,
        "why runs/aer/train.log",
        "why runs/aer/latest/train.log --exit-code 1",
    )
    why.add_argument("log", type=Path, help="all that the run has printed")
    why.add_argument(
        "--exit-code", type=int, help="of the run; negative for a signal (default: the log decides whether it failed)"
    )

    _add(commands, "metrics", "every logged metric: unit, formula, how to read it", _metrics, "metrics")
    return parser


def _add(
    commands: argparse._SubParsersAction,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    *examples: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=_examples(*examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "logs", nargs="+", metavar="[LABEL=]LOG", help="metrics logs; logs of one label are its training seeds"
    )


def _add_markdown(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")


def _add_out(parser: argparse.ArgumentParser, what: str, suffix: str) -> None:
    parser.add_argument("--out", type=Path, help=f"{what} to write (default: the first log with the suffix {suffix})")


def _examples(*lines: str) -> str:
    return "examples:\n" + "\n".join(f"  verl-aer {line}" for line in lines)


def _doctor(args: argparse.Namespace) -> int:
    if args.cluster is not None:
        from verl_aer.launch.cluster_doctor import check_cluster

        return check_cluster(
            args.cluster,
            expected=args.nodes,
            gpus_per_node=args.gpus_per_node,
            wait_seconds=args.wait,
            shared=args.shared,
            only_wait=args.only_wait,
        )
    from verl_aer.launch.doctor import doctor

    return doctor(
        args.overrides,
        args.config_name,
        args.config_path,
        elsewhere=args.elsewhere,
        config_only=args.config_only,
        show_config=args.show_config,
    )


def _runtime_env(args: argparse.Namespace) -> int:
    from verl_aer._files import write_text_atomically
    from verl_aer.launch.runtime_env import runtime_env_yaml

    text = runtime_env_yaml(args.module, args.env)
    if args.out is None:
        print(text, end="")
    else:
        write_text_atomically(args.out, text)
    return OK


def _simulate(args: argparse.Namespace) -> int:
    _import_modules_of_the_user()
    if args.replay is not None:
        return _replay(args.replay, args.config)
    from verl_aer.control.simulation import Plant, Population, simulate, simulate_population
    from verl_aer.reports.metrics_log import series

    gain = 10.0 if args.multiplicative else 0.15
    plant = Plant(noise=args.noise, gain=gain, multiplicative=args.multiplicative)
    configs = {name: _entropy_config(name, args.set) for name in args.method}
    if args.generalization is None:
        runs = {name: simulate(config, plant, args.steps) for name, config in configs.items()}
    else:
        population = Population(plant, args.generalization)
        runs = {name: simulate_population(config, population, args.steps) for name, config in configs.items()}
    for name, rows in runs.items():
        print(f"{name} around a synthetic plant, {args.steps} steps: a picture of the control, not of a model")
        if configs[name].has_shaping_without_alpha:
            print("  (its shaping of rewards or advantages has no part in it)")
        shown = [("aer/entropy", "entropy, nats/token"), ("aer/alpha", "alpha, loss/nat")]
        if args.generalization is not None:
            shown[1:1] = [("aer/entropy/hard", "of hard prompts"), ("aer/entropy/easy", "of easy prompts")]
        for metric, text in shown:
            _, values = series(rows, metric)
            print(f"{text:>20}  {sparkline(values)}  {values[0]:.3f} → {values[-1]:.3f}")
        _, targets = series(rows, "aer/target")
        if len(targets):
            print(f"{'target, nats/token':>20}  {targets[-1]:.3f}")
    if args.out is not None:
        _save_plot({name: [rows] for name, rows in runs.items()}, args.command_line, "Synthetic plant", args.out)
    return OK


def _replay(log: Path, config: Path | None) -> int:
    from verl_aer._files import read_json
    from verl_aer.config.schema import parse_entropy_config
    from verl_aer.control.simulation import replay
    from verl_aer.control.state_file import entropy_settings_path
    from verl_aer.reports.metrics_log import read_metrics_log

    config = config or entropy_settings_path(log)
    if not config.is_file():
        raise InputError(f"{config}: no such file; name the run's entropy settings with --config FILE")
    result = replay(read_metrics_log(log), parse_entropy_config(read_json(config)))
    difference = result.largest_difference
    print(f"{log}: {len(result.steps)} alphas recomputed, largest difference {difference:.3g}")
    # NaN compares false, and is a difference.
    if difference <= REPLAY_TOLERANCE:
        return OK
    first = next(step for step in result.steps if not abs(step.logged - step.recomputed) <= REPLAY_TOLERANCE)
    print(f"first at step {first.step}: logged {first.logged!r}, recomputed {first.recomputed!r}")
    return PROBLEM


def _evaluate(args: argparse.Namespace) -> int:
    from verl_aer.evaluation.config import EvaluationConfig
    from verl_aer.evaluation.report import summary_table
    from verl_aer.evaluation.run import evaluate
    from verl_aer.evaluation.sampler import Sampling

    config = EvaluationConfig(
        model=args.model,
        data=args.data,
        out=args.out,
        sampling=Sampling(args.n, args.temperature, args.top_p, args.max_tokens, args.seed),
        reward=args.reward,
        batch=args.batch,
        tensor_parallel=args.tensor_parallel,
        data_parallel=args.data_parallel,
    )
    _print_table(summary_table([evaluate(config)]), markdown=False)
    print(f"written: {config.folder}/summary.json, summary.md, pass_at_k.png, samples/")
    return OK


def _compare(args: argparse.Namespace) -> int:
    from verl_aer.evaluation.comparison import compare

    runs = _labelled([run if "=" in run else f"{Path(run).name}={run}" for run in args.runs], default="")
    _print_table(compare(runs, sorted(set(args.k)), args.out), args.markdown)
    return OK


def _data(args: argparse.Namespace) -> int:
    import json

    from verl_aer._tables import as_text
    from verl_aer.data.inspect import inspect

    bad_rows = args.file.with_suffix(".bad.jsonl")
    found = inspect(args.file, bad_rows)
    print("\n".join(as_text(table) for table in found.tables()))
    if found.first is not None:
        print(f"the first row\n{json.dumps(found.first, indent=2, ensure_ascii=False, default=str)}")
    if found.bad:
        print(f"bad rows, whole: {bad_rows}", file=sys.stderr)
    if not found.rows or len(found.bad) == found.rows:
        raise InputError(f"{args.file}: no row that veRL could train on")
    return PROBLEM if args.strict and found.bad else OK


def _plot(args: argparse.Namespace) -> int:
    labelled = _labelled(args.logs, default="run")
    out = args.out or _beside(labelled, ".png")
    _save_plot(_read_arms(labelled), args.command_line, args.title, out, args.log_entropy)
    return OK


def _report(args: argparse.Namespace) -> int:
    from verl_aer._files import read_json, write_text_atomically
    from verl_aer.control.state_file import entropy_settings_path
    from verl_aer.reports.html_report import html_report

    labelled = _labelled(args.logs, default="run")
    files = {label: entropy_settings_path(paths[0]) for label, paths in labelled.items()}
    settings = {label: read_json(file) for label, file in files.items() if file.is_file()}
    out = args.out or _beside(labelled, ".html")
    write_text_atomically(out, html_report(_read_arms(labelled), settings, args.command_line, args.title))
    print(f"report: {out}")
    return OK


def _summary(args: argparse.Namespace) -> int:
    from verl_aer.reports.summary import summary_table

    arms = _read_arms(_labelled(args.logs, default="run"))
    _print_table(summary_table(arms), args.markdown)
    return OK


def _read_arms(labelled: Mapping[str, Sequence[Path]]) -> dict[str, list[list[MetricsRow]]]:
    from verl_aer.reports.metrics_log import read_metrics_log

    return {label: [read_metrics_log(path) for path in paths] for label, paths in labelled.items()}


def _beside(labelled: Mapping[str, Sequence[Path]], suffix: str) -> Path:
    """The first log's path with another suffix."""
    return next(iter(labelled.values()))[0].with_suffix(suffix)


def _save_plot(
    arms: Mapping[str, Sequence[Sequence[MetricsRow]]],
    command: str,
    title: str,
    path: Path,
    log_entropy: bool = False,
) -> None:
    from verl_aer.reports.plots import plot_runs, save_figure

    save_figure(plot_runs(arms, command=command, title=title, log_entropy=log_entropy), path)
    print(f"figure: {path}")


def _import_modules_of_the_user() -> None:
    """What veRL imports at its start: modules that may register methods and parts."""
    import importlib
    import os

    for name in filter(None, os.environ.get("VERL_USE_EXTERNAL_MODULES", "").replace(" ", "").split(",")):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"VERL_USE_EXTERNAL_MODULES names {name}, which cannot be imported: {error}") from error


def _methods(args: argparse.Namespace) -> int:
    from verl_aer.reports.method_catalog import explanation, method_table, methods_page

    _import_modules_of_the_user()
    if args.name is not None:
        print(explanation(args.name), end="")
    elif args.markdown:
        print(methods_page(), end="")
    else:
        _print_table(method_table(), markdown=False)
    return OK


def _print_table(table: Table, markdown: bool) -> None:
    from verl_aer._tables import as_markdown, as_text

    print((as_markdown if markdown else as_text)(table), end="")


def _why(args: argparse.Namespace) -> int:
    from verl_aer._failure import explain_failure

    print("\n".join(explain_failure(args.exit_code, args.log)))
    return OK


def _metrics(args: argparse.Namespace) -> int:
    from verl_aer.control.metrics import markdown_table

    print(markdown_table(), end="")
    return OK


def _labelled(arguments: Sequence[str], default: str) -> dict[str, list[Path]]:
    """`label=path` arguments by label; a bare path has the label `default`."""
    labelled: dict[str, list[Path]] = {}
    for argument in arguments:
        label, separator, path = argument.partition("=")
        if not separator:
            label, path = default, argument
        labelled.setdefault(label, []).append(Path(path))
    return labelled


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
    """Those for all methods, and those of the form ``method:key=value`` for this one.

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
    """`values`, averaged down to at most `SPARKLINE_WIDTH` characters, from their lowest to their highest.

    >>> sparkline([0.0, 1.0, 2.0, 7.0])
    '▁▂▃█'
    """
    import numpy as np

    cells = [part.mean() for part in np.array_split(np.asarray(values), min(len(values), SPARKLINE_WIDTH))]
    low, high = min(cells), max(cells)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((cell - low) * scale)] for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
