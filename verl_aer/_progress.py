"""Show the progress of a long task, on a terminal and in a log."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LINE_INTERVAL_S = 30.0
"""Time between two lines if the stream is no terminal."""

SPEED_PERIOD_S = 1800.0
"""Length of the past period from which the remaining time is estimated."""


def duration(seconds: float) -> str:
    """Format seconds as `m:ss`, or as `h:mm:ss` from one hour.

    >>> duration(65), duration(3661)
    ('1:05', '1:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressDisplay:
    """Progress display: a live bar on a terminal, and a plain line every half minute in files, CI and Slurm logs.

    A plain line has no control characters. The first and the last state of a task are always printed.

    Args:
        total: units of the whole task; None if unknown.
        stream: stream for the output; None for standard error.
    """

    def __init__(self, total: int | None = None, stream: TextIO | None = None) -> None:
        stream = sys.stderr if stream is None else stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        columns = (TimeElapsedColumn(), BarColumn(bar_width=6), TextColumn("{task.description}", markup=False))
        self._progress = Progress(*columns, console=self._console, transient=True, speed_estimate_period=SPEED_PERIOD_S)
        # Without a total the bar pulses, because the duration of a task's start is unknown.
        self._progress.add_task("", total=None)
        (self._task,) = self._progress.tasks
        self._total = total
        self._is_live = stream.isatty()
        self._shown = 0
        self._next_line_s = 0.0

    def __enter__(self) -> ProgressDisplay:
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._progress.stop()

    @property
    def elapsed_s(self) -> float:
        return self._task.elapsed

    def show(self, done: int, text: str) -> None:
        """Show that `done` units are finished, with `text` as their description."""
        total = self._total if done else None
        self._progress.update(self._task.id, completed=done, total=total)
        count = f"{done}/{total} " if total else ""
        left = self._task.time_remaining
        description = f"{count}{text}  ETA {duration(left)}" if left else f"{count}{text}"
        self._progress.update(self._task.id, description=description)
        is_new = done == 0 or done != self._shown
        if not self._is_live and is_new and (self.elapsed_s >= self._next_line_s or done == self._total):
            self._shown = done
            self._next_line_s = self.elapsed_s + LINE_INTERVAL_S
            self.note(f"{duration(self.elapsed_s)}  {description}")

    def note(self, line: str) -> None:
        """Print a permanent line."""
        self._console.print(line, soft_wrap=True)
