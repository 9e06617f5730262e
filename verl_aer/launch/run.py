"""A training run as one child process, with its progress live on the terminal.

`run_with_progress` shows what the metrics log says: a bar on a terminal, a plain line every few steps
elsewhere. Lines of the run's output that begin with `[verl_aer]` are shown as they appear. However the run
ends, no process that it started is left behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from verl_aer._failure import explain_failure, strip_prefix
from verl_aer._processes import GRACE_SECONDS, ProcessTree
from verl_aer.control.metrics import MetricsRow
from verl_aer.reports.metrics_log import MetricsTail, is_finite
from verl_aer.reports.summary import BOUNDS, advice_on_bounds, bound_that_holds

POLL_SECONDS = 0.5
"""Between two looks at the log: short enough for a live display, long enough to cost nothing."""

STALL_EXIT_CODE = 124
"""Exit code of a run that was stopped because it stood still, as of timeout(1)."""

PACE_STEPS = 20
"""Steps that the remaining time is estimated from; the first steps are slower than the others."""

START_PHASE = "starting Ray, FSDP2 and vLLM (usually 1-2 min)"
START_LINE_SECONDS = 30.0
"""Between two plain lines before step 1."""

PROOF_MARK = "[verl_aer]"

LONG_WORDING = {
    "entropy": "  entropy {:.3f}",
    "target": " (target {:.3f})",
    "alpha": "  alpha {:.4f}",
    "accuracy": "  accuracy {:.2f}",
    "remaining": "  ETA {}",
}
BAR_WORDING = {
    "entropy": "  H {:.3f}",
    "target": " → {:.3f}",
    "alpha": "  α {:.4f}",
    "accuracy": "  accuracy {:.2f}",
    "remaining": "  ETA {}",
}
"""As above, so short that it fits beside the bar in 80 columns."""


def run_with_progress(
    command: Sequence[str],
    *,
    log_path: str | Path,
    metrics_path: str | Path,
    steps: int,
    env: Mapping[str, str] | None = None,
    stall_seconds: float | None = None,
    line_every: int = 10,
    stream: TextIO | None = None,
) -> int:
    """Run `command` to its end and show its progress.

    Args:
        command: the program and its arguments.
        log_path: where all output of the run goes.
        metrics_path: the metrics log that the run writes, its `VERL_FILE_LOGGER_PATH`. An older file of that
            name is kept as `<name>.previous`: veRL would overwrite it.
        steps: global steps of the whole run.
        env: the environment of the run; None for that of this process.
        stall_seconds: stop the run if it writes nothing, neither output nor metrics, for so long.
        line_every: steps between two lines where `stream` is no terminal.
        stream: where the progress goes; None for standard output.

    Returns:
        The run's exit code; 128 + n if signal n ended it or was sent here; `STALL_EXIT_CODE` after a stall.
    """
    log_path, metrics_path = Path(log_path), Path(metrics_path)
    for path in (log_path, metrics_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if metrics_path.exists():
        os.replace(metrics_path, metrics_path.with_name(metrics_path.name + ".previous"))

    with _noted_signals() as received, log_path.open("wb") as log:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
        tree = ProcessTree(process)
        progress = Progress(steps)
        watcher = _Watcher(log_path, metrics_path, progress, _display(stream or sys.stdout, line_every))
        stalled = False
        try:
            while process.poll() is None and not received and not stalled:
                tree.watch()
                watcher.look()
                stalled = stall_seconds is not None and watcher.silent_seconds() > stall_seconds
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
            if process.returncode is not None:
                tree.wait_until_gone(GRACE_SECONDS, hurry=lambda: bool(received))
        finally:
            # A second signal means: at once.
            tree.end(hurry=lambda: len(received) > 1)
            process.wait()
            watcher.close()

    say = watcher.display.note
    if received:
        say(f"stopped by {signal.Signals(received[0]).name} at step {progress.step} of {steps}")
        return 128 + received[0]
    if stalled:
        say(f"stopped at step {progress.step} of {steps}: no output and no metrics for {stall_seconds:g} s")
        say(f"whole log: {log_path}")
        return STALL_EXIT_CODE
    for line in progress.summary() if process.returncode == 0 else explain_failure(process.returncode, log_path):
        say(line)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


class Progress:
    """What is known of a run from its metrics log."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.step = 0
        self._data: dict[str, float] = {}
        self._started = time.monotonic()
        self._pace: deque[tuple[int, float]] = deque(maxlen=PACE_STEPS + 1)
        self._rows = 0
        self._held_back = dict.fromkeys(BOUNDS, 0)

    def add(self, row: MetricsRow) -> None:
        self.step, self._data = row.step, row.data
        if row.step < 1:
            # The validation before training is no step.
            return
        self._rows += 1
        self._pace.append((row.step, time.monotonic()))
        if bound := bound_that_holds(row.data):
            self._held_back[bound] += 1

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def remaining(self) -> float | None:
        """Seconds to the end at the pace of the last steps; None before two steps and after the last."""
        if len(self._pace) < 2 or self.step >= self.steps:
            return None
        (first, then), (last, now) = self._pace[0], self._pace[-1]
        return (now - then) / (last - first) * (self.steps - self.step)

    def status(self, wording: Mapping[str, str] | None = None) -> str:
        """`entropy 0.301 (target 0.298)  alpha 0.0612  accuracy 0.48`: of these, what the run logs."""
        wording = LONG_WORDING if wording is None else wording
        # A log of ours without accuracy is of rewards that do not say what is correct: their mean is none.
        score = [] if "aer/alpha" in self._data else ["critic/score/mean"]
        values = {
            "entropy": self._value("aer/entropy", "actor/entropy"),
            "target": self._value("aer/target"),
            "alpha": self._value("aer/alpha"),
            "accuracy": self._value("aer/accuracy/mean", *score),
            "remaining": None if self.remaining is None else duration(self.remaining),
        }
        known = {name: value for name, value in values.items() if value is not None}
        return "".join(wording[name].format(value) for name, value in known.items()).strip()

    def summary(self) -> list[str]:
        """What a finished run says last."""
        reached = f"finished {self.step} of {self.steps} steps in {duration(self.elapsed)}"
        return [f"{reached}  {self.status()}".rstrip(), *advice_on_bounds(self._held_back, self._rows)]

    def _value(self, *names: str) -> float | None:
        return next((self._data[name] for name in names if is_finite(self._data.get(name))), None)


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on.

    >>> duration(65), duration(3661)
    ('1:05', '1:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainDisplay:
    """One line every `line_every` steps, the first and the last step: for files, CI and Slurm logs."""

    def __init__(self, stream: TextIO, line_every: int) -> None:
        self._stream = stream
        self._line_every = line_every
        self._shown_step = 0
        self._next_start_line = 0.0

    def update(self, progress: Progress) -> None:
        step = progress.step
        if step < 1:
            if progress.elapsed >= self._next_start_line:
                self._next_start_line += START_LINE_SECONDS
                self.note(f"{duration(progress.elapsed)}  {START_PHASE}")
        elif step > self._shown_step and (
            self._shown_step == 0 or step % self._line_every == 0 or step >= progress.steps
        ):
            self._shown_step = step
            self.note(f"{duration(progress.elapsed)}  step {step}/{progress.steps}  {progress.status()}")

    def note(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class BarDisplay:
    """A live bar for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(file=stream, highlight=False)
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.fields[elapsed]}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
        )
        # Without a total the bar pulses: how long the start takes cannot be known.
        self._task = self._bar.add_task(START_PHASE, total=None, elapsed="0:00")
        self._bar.start()

    def update(self, progress: Progress) -> None:
        started = progress.step >= 1
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.steps if started else None,
            description=progress.status(BAR_WORDING) if started else START_PHASE,
            elapsed=duration(progress.elapsed),
        )

    def note(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def _display(stream: TextIO, line_every: int) -> PlainDisplay | BarDisplay:
    return BarDisplay(stream) if stream.isatty() else PlainDisplay(stream, line_every)


class _Watcher:
    """Carries what a run writes, in its output and in its metrics log, to the display."""

    def __init__(
        self, log_path: Path, metrics_path: Path, progress: Progress, display: PlainDisplay | BarDisplay
    ) -> None:
        self.display = display
        self._log_path = log_path
        self._metrics = MetricsTail(metrics_path)
        self._progress = progress
        self._read_to = 0
        self._size = 0
        self._shown: set[str] = set()
        self._heard = time.monotonic()

    def look(self) -> None:
        """Show what is new."""
        rows = self._metrics.read()
        if self._log_path.stat().st_size > self._size or rows:
            self._size = self._log_path.stat().st_size
            self._heard = time.monotonic()
        for line in self._new_output():
            # Several processes may say the same, and Ray repeats some lines.
            if line.startswith(PROOF_MARK) and line not in self._shown:
                self._shown.add(line)
                self.display.note(line)
        for row in rows:
            self._progress.add(row)
            self.display.update(self._progress)
        self.display.update(self._progress)

    def silent_seconds(self) -> float:
        """Seconds since the run last wrote anything."""
        return time.monotonic() - self._heard

    def close(self) -> None:
        """Show the rest, which a run may write right before it ends."""
        self.look()
        self.display.close()

    def _new_output(self) -> list[str]:
        with self._log_path.open("rb") as log:
            log.seek(self._read_to)
            content = log.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._read_to += len(complete)
        return [strip_prefix(line) for line in complete.decode(errors="replace").splitlines()]


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are collected in a list instead of ending this process before its child."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        # Python has signal handlers in the main thread only; elsewhere the caller's stay.
        yield received
        return
    before = {
        number: signal.signal(number, lambda got, _frame: received.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
