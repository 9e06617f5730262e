"""One run of the Countdown example on the real stack: veRL, Ray, FSDP2 and vLLM, on a GPU or a CPU.

    python -m examples.countdown.train --entropy aer --seed 0
    python -m examples.countdown.train --entropy fixed --steps 60 -- entropy.controller.coefficient=0.02

Prepares the data and the warm start if they are not there, starts veRL's own `verl.trainer.main_ppo` as a child
process, shows its progress, and at the end a table by difficulty and one figure. Everything lands in one folder.
A run that is finished already is shown again and not repeated.
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
"""Longest silence of a run that is alive: the slowest start of vLLM that was seen took two minutes."""
LONGEST_SOCKET_FOLDER = 36
"""Characters; Ray's sockets lie 67 further down, and the system takes names of up to 107."""


@dataclass(frozen=True)
class Run:
    """Where a run keeps what it reads and writes."""

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
        """Written last, with the command that was run: a run with the same command need not be repeated."""
        return self.folder / "finished.json"


def run_in(folder: Path, shared: Path, seed: int) -> Run:
    """The run of `folder`, with the inputs that all runs of its seed share."""
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
    """Make one run whole: inputs, training, record of its end. Returns the exit code.

    Args:
        entropy: the method, a name that `verl-aer methods` lists.
        seed: of the training prompts, sampling and mini-batches; warm start and held-out prompts are the same for all.
        steps: training steps.
        folder: where the run's own files go.
        shared: where data and warm starts are, for all runs.
        overrides: further Hydra overrides, last and strongest.
    """
    run = run_in(folder, shared, seed)
    command = training_command(run, entropy, seed=seed, steps=steps, overrides=overrides)
    if is_finished(run, command):
        print(f"{folder}: finished already with this command, not run again")
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
    """Build the user's own command: veRL's entry point, and `+entropy=` with the method."""
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
    """What this machine needs: settings for a CPU, or for a GPU without flash-attn, or none."""
    if not accelerator_is_here():
        return ["+hardware=cpu"]
    return [] if importlib.util.find_spec("flash_attn") is not None else settings.WITHOUT_FLASH_ATTENTION


def accelerator_is_here() -> bool:
    import torch

    return torch.accelerator.is_available()


def is_finished(run: Run, command: Sequence[str]) -> bool:
    return run.finished.exists() and json.loads(run.finished.read_text())["command"] == list(command)


def make_inputs(run: Run, seed: int) -> None:
    """Data and warm start, each only if it is not there already."""
    if not (run.data / "test.parquet").exists():
        prepare.prepare(run.data, prepare.TRAIN_ROWS, seed)
        print(f"data in {run.data}")
    if warm_start.warm_start(run.model, warm_start.Settings()):
        print(f"warm start in {run.model}")


@contextmanager
def training_environment(run: Run) -> Iterator[dict[str, str]]:
    """The child's environment: all that it writes stays in the run's folder, or is removed at its end."""
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
    """The table by difficulty, before (if that was measured) and after, and the path of the figure."""
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
    parser.add_argument("--entropy", default="aer", help="the method, as `verl-aer methods` lists them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=settings.STEPS)
    parser.add_argument("--name", help="folder of the run under --runs (default METHOD-seedSEED)")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"folder of all runs (default {RUNS})")
    parser.add_argument("--print-command", action="store_true", help="print veRL's command and do nothing")
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
