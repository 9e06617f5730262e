"""Run a training as a child process and show its progress.

`run_with_progress` displays the metrics log, and prints the run's output lines that begin with `[verl_aer]`. However
the run ends, all processes that it started are ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from verl_aer._failure import explain_failure, strip_prefix
from verl_aer._processes import GRACE_SECONDS, ProcessTree
from verl_aer._progress import ProgressDisplay, duration
from verl_aer.control.metrics import MetricsRow
from verl_aer.reports.metrics_log import MetricsTail, is_finite
from verl_aer.reports.summary import BOUNDS, advice_on_bounds, bound_that_holds

POLL_SECONDS = 0.5
"""Interval between two reads of the log: short enough for a live display, long enough to cost nothing."""

STALL_EXIT_CODE = 124
"""Exit code of a run that was stopped after a stall, as for timeout(1)."""

START_PHASE = "starting Ray, FSDP2 and vLLM (usually 1-2 min)"
PROOF_MARK = "[verl_aer]"

WORDING = {
    "entropy": "  entropy {:.3f}",
    "target": "→{:.3f}",
    "alpha": "  alpha {:.4f}",
    "accuracy": "  acc {:.2f}",
}
"""Short enough to fit next to a bar in 80 columns."""


def run_with_progress(
    command: Sequence[str],
    *,
    log_path: str | Path,
    metrics_path: str | Path,
    steps: int,
    env: Mapping[str, str] | None = None,
    stall_seconds: float | None = None,
    stream: TextIO | None = None,
) -> int:
    """Run `command` to its end and show its progress.

    Args:
        command: the program and its arguments.
        log_path: file for all output of the run.
        metrics_path: the run's metrics log, its `VERL_FILE_LOGGER_PATH`. An older file of that name is kept as
            `<name>.previous`, because veRL would overwrite it.
        steps: global steps of the whole run.
        env: environment of the run; None for the environment of this process.
        stall_seconds: stop the run if it writes neither output nor metrics for this long.
        stream: stream for the progress; None for standard output.

    Returns:
        The run's exit code; 128 + n if signal n ended it or this process received it; `STALL_EXIT_CODE` after a stall.
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
        display = ProgressDisplay(steps, stream or sys.stdout)
        watcher = _Watcher(log_path, metrics_path, display)
        stalled = False
        try:
            with display:
                while process.poll() is None and not received and not stalled:
                    tree.watch()
                    watcher.look()
                    stalled = stall_seconds is not None and watcher.silent_seconds() > stall_seconds
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_SECONDS)
                if process.returncode is not None:
                    tree.wait_until_gone(GRACE_SECONDS, hurry=lambda: bool(received))
        finally:
            # A second signal skips the grace period.
            tree.end(hurry=lambda: len(received) > 1)
            process.wait()
            # Read the output that the run wrote just before its end.
            watcher.look()

    if received:
        display.note(f"stopped by {signal.Signals(received[0]).name} at step {watcher.step} of {steps}")
        return 128 + received[0]
    if stalled:
        display.note(f"stopped at step {watcher.step} of {steps}: no output and no metrics for {stall_seconds:g} s")
        display.note(f"whole log: {log_path}")
        return STALL_EXIT_CODE
    if process.returncode == 0:
        finished = f"finished {watcher.step} of {steps} steps in {duration(display.elapsed_s)}"
        lines = [f"{finished}  {watcher.status()}".rstrip(), *watcher.advice()]
    else:
        lines = explain_failure(process.returncode, log_path)
    for line in lines:
        display.note(line)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


class _Watcher:
    """Copy the run's new output lines and metrics to the display."""

    def __init__(self, log_path: Path, metrics_path: Path, display: ProgressDisplay) -> None:
        self.step = 0
        self._data: dict[str, float] = {}
        self._rows = 0
        self._held_back = dict.fromkeys(BOUNDS, 0)
        self._display = display
        self._log_path = log_path
        self._metrics = MetricsTail(metrics_path)
        self._read_to = 0
        self._size = 0
        self._shown: set[str] = set()
        self._heard = time.monotonic()

    def look(self) -> None:
        """Show new lines and metrics."""
        rows = self._metrics.read()
        if self._log_path.stat().st_size > self._size or rows:
            self._size = self._log_path.stat().st_size
            self._heard = time.monotonic()
        for line in self._new_output():
            # Several processes may print the same line, and Ray repeats some.
            if line.startswith(PROOF_MARK) and line not in self._shown:
                self._shown.add(line)
                self._display.note(line)
        for row in rows:
            self._add(row)
            if self._rows:
                self._display.show(self.step, self.status())
        if not self._rows:
            self._display.show(0, START_PHASE)

    def silent_seconds(self) -> float:
        """Return the seconds since the run last wrote anything."""
        return time.monotonic() - self._heard

    def status(self) -> str:
        """Write `entropy 0.301→0.298  alpha 0.0612  acc 0.48`, with the values that the run logs."""
        # In a log of ours without accuracy, the rewards do not report correctness, so their mean is no accuracy.
        score = [] if "aer/alpha" in self._data else ["critic/score/mean"]
        values = {
            "entropy": self._value("aer/entropy", "actor/entropy"),
            "target": self._value("aer/target"),
            "alpha": self._value("aer/alpha"),
            "accuracy": self._value("aer/accuracy/mean", *score),
        }
        return "".join(WORDING[name].format(value) for name, value in values.items() if value is not None).strip()

    def advice(self) -> list[str]:
        """Name the bound of alpha that should be moved."""
        return advice_on_bounds(self._held_back, self._rows)

    def _add(self, row: MetricsRow) -> None:
        self.step, self._data = row.step, row.data
        # The validation before training is not a step.
        if row.step >= 1:
            self._rows += 1
            if bound := bound_that_holds(row.data):
                self._held_back[bound] += 1

    def _value(self, *names: str) -> float | None:
        return next((self._data[name] for name in names if is_finite(self._data.get(name))), None)

    def _new_output(self) -> list[str]:
        with self._log_path.open("rb") as log:
            log.seek(self._read_to)
            content = log.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._read_to += len(complete)
        return [strip_prefix(line) for line in complete.decode(errors="replace").splitlines()]


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that they do not end this process before its child."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        # Python handles signals only in the main thread. In another thread the caller's handlers stay.
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
