"""Read answers from veRL's validation dumps.

veRL writes one JSONL file per validation, `<trainer.validation_data_dir>/<global step>.jsonl`, with one line per
answer: `input`, `output`, `gts`, `score`, `step`, `uid` = `{prompt uid}_{session}_{index}` and the other keys that the
reward function returned. Of those, `acc`, `level` and `pred` are read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_aer.errors import VerlAerError
from verl_aer.evaluation.samples import NO_LEVEL
from verl_aer.evaluation.statistics import Answers


class DumpError(VerlAerError, ValueError):
    """A validation dump that cannot be read. The message names the file, the line and the setting to change."""


def read_dump(path: Path) -> list[Answers]:
    """Read one validation dump of veRL.

    Rows with the same prompt uid are one problem. In each session only the row with the highest index counts, because
    an agent loop may emit several outputs before its final one. A problem is identified by its prompt, because veRL
    draws new uids at every validation. Problems with the same prompt are identified by their order.

    Args:
        path: a file `<step>.jsonl` of `trainer.validation_data_dir`. `acc`, a bool, 0 or 1, is the correctness of the
            answer. `level`, the difficulty level, and `pred`, the extracted answer, may be absent.

    Raises:
        DumpError: a missing or empty file, a broken line, a missing key, or an `acc` that is not 0 or 1.
    """
    rows = _read_rows(path)
    has_levels = any("level" in row for row in rows)
    occurrences: Counter[str] = Counter()
    problems = []
    for answers in _final_answers(rows, path):
        prompt = answers[0]["input"]
        occurrences[prompt] += 1
        problems.append(
            Answers(
                problem=json.dumps([prompt, occurrences[prompt]]),
                source="",
                level=_level(answers[0], path) if has_levels else NO_LEVEL,
                correct=tuple(_is_correct(row, path) for row in answers),
                texts=tuple(_text(row) for row in answers),
            )
        )
    return problems


def _read_rows(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise DumpError(
            f"{path}: no such file or folder; give a folder of `verl-aer evaluate`, or a validation dump, which veRL "
            "writes if trainer.validation_data_dir is set"
        )
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DumpError(f"{path}, line {number}: not JSON ({error}); was the run stopped while writing?") from error
        if "input" not in row:
            raise DumpError(f"{path}, line {number}: no 'input'; is this a file of trainer.validation_data_dir?")
        rows.append(row)
    if not rows:
        raise DumpError(f"{path}: the file is empty")
    return rows


def _final_answers(rows: list[Mapping[str, Any]], path: Path) -> list[list[Mapping[str, Any]]]:
    """Collect the final row of each session, by problem."""
    final: dict[str, dict[str, tuple[int, Mapping[str, Any]]]] = {}
    for number, row in enumerate(rows, start=1):
        parts = str(row.get("uid", "")).rsplit("_", 2)
        if len(parts) != 3 or not parts[2].isdigit():
            raise DumpError(
                f"{path}, line {number}: 'uid' must be {{prompt}}_{{session}}_{{index}}, got {row.get('uid')!r}"
            )
        uid, session, index = parts[0], parts[1], int(parts[2])
        sessions = final.setdefault(uid, {})
        if session not in sessions or index > sessions[session][0]:
            sessions[session] = (index, row)
    return [[row for _, row in sessions.values()] for sessions in final.values()]


def _level(row: Mapping[str, Any], path: Path) -> str:
    if row.get("level") is None:
        raise DumpError(
            f"{path}, answer {row['uid']}: no 'level', though other rows have it; return it for every answer"
        )
    return str(row["level"])


def _text(row: Mapping[str, Any]) -> str:
    # Without an extracted answer, the whole text is the vote. If only some rows have a key, veRL fills it with null.
    return str(row["pred"]) if row.get("pred") is not None else str(row.get("output", "")).strip()


def _is_correct(row: Mapping[str, Any], path: Path) -> bool:
    value = row.get("acc")
    if value not in (0, 1):
        raise DumpError(
            f"{path}, answer {row['uid']}: 'acc' must be true, false, 0 or 1, got {value!r}; "
            "let the reward function return {'score': ..., 'acc': ...}"
        )
    return bool(value)
