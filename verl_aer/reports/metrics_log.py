"""Read veRL's metrics log: one line `{"step": n, "data": {name: value}}` per step.

`trainer.logger=["console","file"]` writes it, to the path in `VERL_FILE_LOGGER_PATH`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from verl_aer.control.metrics import MetricsRow
from verl_aer.errors import VerlAerError


class MetricsLogError(VerlAerError, ValueError):
    """A metrics log that cannot be read. The message names the file, the line and the fix."""


class MetricsTail:
    """Read the rows that a running job appends to its metrics log.

    A line without its newline is incomplete and not read yet. A missing file has no rows.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._offset = 0
        self._lines = 0

    def read(self) -> list[MetricsRow]:
        """Read the rows since the last call.

        Raises:
            MetricsLogError: a complete line is not a metrics row.
        """
        if not self._path.is_file():
            return []
        with self._path.open("rb") as log:
            log.seek(self._offset)
            content = log.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        rows = []
        for line in complete.splitlines():
            self._lines += 1
            rows.append(_parse(line, self._path, self._lines))
        return rows


def read_metrics_log(path: str | Path) -> list[MetricsRow]:
    """Read all complete rows of a log, sorted by step. Rows of the same step are merged.

    Raises:
        MetricsLogError: no such file, no rows, or a line that is not a metrics row.
    """
    if not Path(path).is_file():
        raise MetricsLogError(
            f"{path}: no such file; run with trainer.logger=[console,file] and VERL_FILE_LOGGER_PATH={path}"
        )
    merged: dict[int, dict[str, float]] = {}
    for row in MetricsTail(path).read():
        merged.setdefault(row.step, {}).update(row.data)
    if not merged:
        raise MetricsLogError(f"{path}: no complete line yet; veRL writes the first one after the first step")
    return [MetricsRow(step, merged[step]) for step in sorted(merged)]


def series(rows: Sequence[MetricsRow], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (S,) int and values (S,) float64 of the finite values of one metric; empty if never logged."""
    pairs = [(row.step, row.data[name]) for row in rows if is_finite(row.data.get(name))]
    steps = np.array([step for step, _ in pairs], dtype=int)
    return steps, np.array([value for _, value in pairs], dtype=float)


def is_finite(value: object) -> bool:
    """Check whether a logged value is a number. veRL's logger writes NaN and infinities as null."""
    return isinstance(value, int | float) and math.isfinite(value)


def _parse(line: bytes, path: Path, number: int) -> MetricsRow:
    try:
        entry = json.loads(line)
        return MetricsRow(int(entry["step"]), dict(entry["data"]))
    except (ValueError, KeyError, TypeError) as error:
        raise MetricsLogError(
            f'{path}, line {number}: expected {{"step": n, "data": {{...}}}}, got {line[:80]!r}'
        ) from error
