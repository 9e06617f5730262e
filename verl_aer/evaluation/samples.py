"""Store the problems and sampled answers of an evaluation as files, so that it can be resumed.

    OUT/settings.json              evaluation settings; resuming with different settings is refused
    OUT/samples/00000.jsonl        answers to the first batch of problems, one per line; complete or absent

A batch always has the same problems and the same seeds, so that sampling it again gives the same answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_aer._files import read_json, write_text_atomically
from verl_aer.data.inspect import row_error
from verl_aer.data.reading import open_parquet
from verl_aer.errors import InputError
from verl_aer.evaluation.statistics import Answers
from verl_aer.rollouts.question_memory import question_id

NO_LEVEL = "none"


@dataclass(frozen=True)
class EvalProblem:
    """A problem of a data file. row: the unchanged row, for the reward function."""

    problem: str
    source: str
    level: str
    prompt: list[dict[str, str]]
    row: dict[str, Any]


def read_problems(files: Sequence[Path]) -> list[EvalProblem]:
    """Read the problems of prepared parquet files, in order.

    Raises:
        InputError: a row that cannot be evaluated, or a repeated problem.
    """
    problems: dict[str, EvalProblem] = {}
    for file in files:
        for number, row in enumerate(open_parquet(file).read().to_pylist(), start=1):
            reason = row_error(row)
            if reason is not None:
                raise InputError(f"{file}, row {number}: {reason}; `verl-aer data inspect {file}` lists all such rows")
            info = row.get("extra_info") or {}
            name = question_id(info, row["data_source"], row["prompt"], key="question_id")
            if name in problems:
                raise InputError(f"{file}, row {number}: problem {name} occurs twice; prepare the data again")
            level = info.get("level")
            problems[name] = EvalProblem(
                name, row["data_source"], NO_LEVEL if level is None else str(level), row["prompt"], row
            )
    if not problems:
        raise InputError(f"{', '.join(map(str, files))}: no problems")
    return list(problems.values())


def fingerprint(files: Sequence[Path]) -> str:
    """Compute the SHA-256 of the files' bytes, in order."""
    content = hashlib.sha256()
    for file in files:
        content.update(file.read_bytes())
    return content.hexdigest()


class SampleStore:
    """The folder of an evaluation."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Open or create the folder.

        Raises:
            InputError: the folder has samples from other settings.
        """
        self.folder = folder
        found = folder / "settings.json"
        if found.is_file():
            before = read_json(found)
            changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
            if changed:
                told = "; ".join(f"{key}: {before.get(key)!r} there, {settings.get(key)!r} now" for key in changed)
                raise InputError(f"{folder} has samples of another evaluation ({told}); choose another --out")
        else:
            write_text_atomically(found, json.dumps(settings, indent=2) + "\n")

    def missing(self, batches: int) -> list[int]:
        """List the numbers of the batches below `batches` that are not saved."""
        return [batch for batch in range(batches) if not self._file(batch).is_file()]

    def add(self, batch: int, samples: Sequence[dict[str, Any]]) -> None:
        write_text_atomically(self._file(batch), "".join(json.dumps(sample) + "\n" for sample in samples))

    def samples(self) -> Iterator[dict[str, Any]]:
        """Read all samples, batch by batch."""
        for file in _batch_files(self.folder):
            for line in file.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)

    def _file(self, batch: int) -> Path:
        return self.folder / "samples" / f"{batch:05d}.jsonl"


def gather(samples: Iterator[dict[str, Any]]) -> list[Answers]:
    """Collect the answers of each problem, in the order of the samples."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        rows.setdefault(sample["problem"], []).append(sample)
    return [
        Answers(
            problem=name,
            source=of_problem[0]["source"],
            level=of_problem[0]["level"],
            correct=tuple(bool(sample["acc"]) for sample in of_problem),
            texts=tuple(sample["pred"] for sample in of_problem),
            tokens=tuple(sample["tokens"] for sample in of_problem),
            mean_nll=tuple(sample["mean_nll"] for sample in of_problem),
        )
        for name, of_problem in rows.items()
    ]


def read_run(folder: Path) -> list[Answers]:
    """Read the answers of a finished evaluation.

    Raises:
        InputError: no batches, or not all.
    """
    files = _batch_files(folder)
    if not files:
        raise InputError(f"{folder}: no samples; give a folder that `verl-aer evaluate` has written")
    settings = read_json(folder / "settings.json")
    if len(files) != settings["batches"]:
        raise InputError(
            f"{folder}: {len(files)} of {settings['batches']} batches are complete; "
            "repeat the same `verl-aer evaluate` to resume it"
        )
    return gather(SampleStore(folder, settings).samples())


def _batch_files(folder: Path) -> list[Path]:
    # A worker that is killed while writing leaves a temporary file, whose name begins with a dot.
    return sorted((folder / "samples").glob("[0-9]*.jsonl"))
