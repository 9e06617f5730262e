"""Train one run of the Countdown example on the real stack: veRL, Ray, FSDP2 and vLLM, on a GPU or a CPU.

    python -m examples.countdown.train --entropy aer --seed 0
    python -m examples.countdown.train --entropy fixed --steps 60 -- entropy.controller.coefficient=0.02

It prepares the data and the warm start if they are missing, runs veRL's `verl.trainer.main_ppo` as a child process and
shows its progress. At the end it shows a table by difficulty and one figure. All output is in one folder.
A finished run is shown again, not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.countdown import prepare, settings, warm_start
from verl_aer._files import write_text_atomically
from verl_aer.cli.main import main as verl_aer
from verl_aer.launch.run import run_with_progress

ROOT = Path(__file__).resolve().parents[2]
RUNS = Path("runs/countdown")
STALL_SECONDS = 300.0
"""Longest silence of a live run. The slowest observed start of vLLM took two minutes."""
LONGEST_SOCKET_FOLDER = 36
"""Characters. Ray's sockets have paths that are 67 characters longer, and the system limits those to 107."""


@dataclass(frozen=True)
class Run:
    """Input and output paths of a run."""

    folder: Path
    data: Path
    model: Path

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def validation(self) -> Path:
        return self.folder / "validation"

    @property
    def figure(self) -> Path:
        return self.folder / "run.png"

    @property
    def finished(self) -> Path:
        """Return the file, written last, with the command of the run. The same command is not repeated."""
        return self.folder / "finished.json"


def run_in(folder: Path, shared: Path, seed: int) -> Run:
    """Make the paths of a run in `folder`, with the inputs that all runs of its seed share."""
    return Run(folder=folder, data=shared / f"data-seed{seed}", model=shared / "warm_start")


def train(
    entropy: str,
    *,
    seed: int,
    steps: int,
    folder: Path,
    shared: Path = RUNS,
    overrides: Sequence[str] = (),
) -> int:
    """Run one training completely: inputs, training, record of its end. Returns the exit code.

    Args:
        entropy: a method from `verl-aer methods`.
        seed: seed of training prompts, sampling and mini-batches; warm start and held-out prompts are the same for all.
        steps: training steps.
        folder: folder for the output of the run.
        shared: folder for the data and warm starts of all runs.
        overrides: further Hydra overrides, which take precedence.
    """
    run = run_in(folder, shared, seed)
    command = training_command(run, entropy, seed=seed, steps=steps, overrides=overrides)
    if is_finished(run, command):
        print(f"{folder}: already finished with this command, not run again")
        return 0
    make_inputs(run, seed)
    for path in (run.finished, run.metrics, run.figure):
        path.unlink(missing_ok=True)
    shutil.rmtree(run.validation, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with training_environment(run) as environment:
        print(f"training with entropy={entropy}, seed {seed}, {steps} steps; whole output in {run.log}")
        code = run_with_progress(
            command,
            env=environment,
            log_path=run.log,
            metrics_path=run.metrics,
            steps=steps,
            stall_seconds=STALL_SECONDS,
        )
    if code == 0:
        write_text_atomically(run.finished, json.dumps({"command": command}, indent=2) + "\n")
    return code


def training_command(run: Run, entropy: str, *, seed: int, steps: int, overrides: Sequence[str] = ()) -> list[str]:
    """Build the command that a user would run: veRL's entry point with `+entropy=METHOD`."""
    method = settings.AER_OVERRIDES if entropy.startswith("aer") else []
    return [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        f"+entropy={entropy}",
        *hardware_overrides(),
        *settings.verl_overrides(run.data, run.model, seed, steps),
        *method,
        "trainer.logger=[console,file]",
        "trainer.project_name=countdown",
        f"trainer.experiment_name={run.folder.name}",
        f"trainer.default_local_dir={run.folder.resolve()}/checkpoints",
        f"trainer.validation_data_dir={run.validation.resolve()}",
        "trainer.val_before_train=true",
        "trainer.resume_mode=disable",
        f"hydra.run.dir={run.folder.resolve()}/hydra",
        *overrides,
    ]


def hardware_overrides() -> list[str]:
    """Return the settings for this machine: for a CPU, for a GPU without flash-attn, or none."""
    if not accelerator_is_here():
        return ["+hardware=cpu"]
    return [] if importlib.util.find_spec("flash_attn") is not None else settings.WITHOUT_FLASH_ATTENTION


def accelerator_is_here() -> bool:
    import torch

    return torch.accelerator.is_available()


def is_finished(run: Run, command: Sequence[str]) -> bool:
    return run.finished.exists() and json.loads(run.finished.read_text())["command"] == list(command)


def make_inputs(run: Run, seed: int) -> None:
    """Make data and warm start if they are missing."""
    if not (run.data / "test.parquet").exists():
        prepare.prepare(run.data, prepare.TRAIN_ROWS, seed)
        print(f"data in {run.data}")
    if warm_start.warm_start(run.model, warm_start.WarmStartSettings()):
        print(f"warm start in {run.model}")


@contextmanager
def training_environment(run: Run) -> Iterator[dict[str, str]]:
    """Build the child's environment. All its output stays in the run's folder or is deleted at the end."""
    scratch = ROOT / ".cache" / "ray"
    removed = None
    if len(str(scratch)) > LONGEST_SOCKET_FOLDER:
        scratch = removed = Path(tempfile.mkdtemp(prefix="aer-", dir="/tmp"))
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "VERL_FILE_LOGGER_PATH": str(run.metrics.resolve()),
        "RAY_TMPDIR": str(scratch),
        "TMPDIR": str(scratch),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    try:
        yield environment
    finally:
        if removed is not None:
            shutil.rmtree(removed, ignore_errors=True)


def show(run_folder: Path, steps: int, title: str) -> int:
    """Show the table by difficulty before (if measured) and after training, and write the figure."""
    run = Run(folder=run_folder, data=run_folder, model=run_folder)
    dumps = {"before": run.validation / "0.jsonl", "after": run.validation / f"{steps}.jsonl"}
    found = [f"{label}={path}" for label, path in dumps.items() if path.exists()]
    code = verl_aer(["compare", *found]) if found else 0
    return code or verl_aer(["plot", f"{title}={run.metrics}", "--out", str(run.figure)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Train the Countdown example on the real stack.",
        epilog="examples:\n"
        "  python -m examples.countdown.train --entropy aer\n"
        "  python -m examples.countdown.train --entropy none --seed 1 --steps 100\n"
        "  python -m examples.countdown.train --entropy fixed -- entropy.controller.coefficient=0.02\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--entropy", default="aer", help="a method from `verl-aer methods`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=settings.STEPS)
    parser.add_argument("--name", help="folder of the run under --runs (default METHOD-seedSEED)")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"folder of all runs (default {RUNS})")
    parser.add_argument("--print-command", action="store_true", help="only print veRL's command")
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides, after `--`")
    args = parser.parse_args(arguments)

    name = args.name or f"{args.entropy}-seed{args.seed}"
    folder = args.runs / name
    if args.print_command:
        run = run_in(folder, args.runs, args.seed)
        command = training_command(run, args.entropy, seed=args.seed, steps=args.steps, overrides=args.overrides)
        print(shlex.join(command))
        return 0
    code = train(
        args.entropy,
        seed=args.seed,
        steps=args.steps,
        folder=folder,
        shared=args.runs,
        overrides=args.overrides,
    )
    return code or show(folder, args.steps, args.entropy)


if __name__ == "__main__":
    sys.exit(main())
