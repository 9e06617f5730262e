"""pass@k by difficulty level, from the validation answers that veRL dumps.

With n sampled answers to a problem, c of them right,

    pass@k = 1 - C(n - c, k) / C(n, k)

is the unbiased estimate of the probability that at least one of k answers is right (Chen et al. 2021,
arXiv 2107.03374, equation 1). A level's value is the mean over its problems. The interval is a percentile
bootstrap over problems: it covers the choice of problems, neither the sampling seed nor the training seed.

veRL writes one JSONL file a validation, `<trainer.validation_data_dir>/<global step>.jsonl`, with one line an
answer: `input`, `output`, `gts`, `score`, `step`, `uid` = `{prompt uid}_{session}_{index}` and every key that
the reward function returned beside its score. `acc` and `level` are read from the latter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from verl_aer._tables import Table
from verl_aer.errors import InputError, VerlAerError

ALL_LEVELS = "all"
BOOTSTRAP_RESAMPLES = 2000
"""Resamples of a bootstrap: the ends of a 95 % interval then move by about 2 % of its width between seeds."""


class DumpError(VerlAerError, ValueError):
    """A validation dump that cannot be read: the message names the file, the line and what to set."""


@dataclass(frozen=True)
class ProblemResult:
    """The answers to one problem: `answers` is n, `correct` is c."""

    key: tuple[str, int]
    """The prompt's text and its occurrence number: uids are drawn again at every validation."""
    level: str
    answers: int
    correct: int


Dump = list[ProblemResult]
"""One validation: the results of its problems."""


class Estimate(NamedTuple):
    """A mean over problems with the ends of its 95 % bootstrap interval, all in [0, 1] (or a difference)."""

    mean: float
    low: float
    high: float
    problems: int


def pass_at_k(answers: int, correct: int, k: int) -> float:
    """Probability that at least one of k answers, drawn without replacement from n, is right.

        pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n - c + 1}^{n} (1 - k / i)

    The product has no large factorial in it (Chen et al. 2021, arXiv 2107.03374, figure 3).

    Args:
        answers: n, number of sampled answers, >= k.
        correct: c, number of right ones, in [0, n].
        k: number of tries, >= 1.

    Raises:
        InputError: k is not in [1, n], or c is not in [0, n].

    >>> pass_at_k(answers=4, correct=1, k=1)
    0.25
    >>> pass_at_k(answers=4, correct=1, k=4)
    1.0
    """
    if not 1 <= k <= answers:
        raise InputError(f"k must be in [1, n], got k = {k} with n = {answers} answers")
    if not 0 <= correct <= answers:
        raise InputError(f"the number of right answers must be in [0, {answers}], got {correct}")
    if answers - correct < k:
        return 1.0
    factors = 1.0 - k / np.arange(answers - correct + 1, answers + 1)
    return float(1.0 - np.prod(factors))


def read_dump(path: str | Path) -> Dump:
    """Read one validation dump of veRL.

    Rows with the same prompt uid are one problem; of the rows of one session only the highest index counts,
    as an agent loop may emit several outputs before its final one. Without `level` on any row all
    problems get the level `all`.

    Args:
        path: a `<step>.jsonl` file of `trainer.validation_data_dir`, with what the reward function returned: `acc`, a
            bool, 0 or 1, says whether the answer is right; `level` is the difficulty level, or absent.

    Raises:
        DumpError: a missing file, no rows, a broken line, a missing key, or a value that is not 0 or 1.
    """
    rows = _read_rows(Path(path))
    final: dict[tuple[str, str], tuple[int, Mapping]] = {}
    for number, row in enumerate(rows, start=1):
        uid, session, index = _split_uid(row, f"{path}, line {number}")
        if (uid, session) not in final or index > final[uid, session][0]:
            final[uid, session] = (index, row)

    answers_of: dict[str, list[Mapping]] = {}
    for (uid, _session), (_index, row) in final.items():
        answers_of.setdefault(uid, []).append(row)

    has_levels = any("level" in row for row in rows)
    occurrences: dict[str, int] = {}
    problems = []
    for answers in answers_of.values():
        prompt = answers[0]["input"]
        occurrences[prompt] = occurrences.get(prompt, -1) + 1
        problems.append(
            ProblemResult(
                key=(prompt, occurrences[prompt]),
                level=_level(answers[0]) if has_levels else ALL_LEVELS,
                answers=len(answers),
                correct=sum(_correct(row, path) for row in answers),
            )
        )
    return problems


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of `values` (P,) with a 95 % percentile bootstrap interval over the P problems."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), size=(BOOTSTRAP_RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def pass_at_k_table(dumps: Mapping[str, Sequence[Dump]], ks: Sequence[int] = (1, 8)) -> Table:
    """One row a level and k, one column a label, and the change where there are exactly two labels.

    Args:
        dumps: label -> the dumps of its training seeds; a problem's value is the mean of its pass@k over the
            seeds. All dumps must hold the same problems.
        ks: the numbers of tries.

    Raises:
        DumpError: the dumps hold different problems, or a problem has fewer answers than k.
    """
    labels = list(dumps)
    levels = _common_levels(dumps)
    header = ["level", "problems", "metric", *labels]
    if len(labels) == 2:
        header.append("change")
    rows = []
    for k in ks:
        values = {label: _values(label, seeds, k) for label, seeds in dumps.items()}
        for level, keys in levels.items():
            columns = [np.array([values[label][key] for key in keys]) for label in labels]
            cells = [cell(estimate(column)) for column in columns]
            if len(labels) == 2:
                # The difference is taken problem by problem, so that the spread between problems cancels.
                cells.append(cell(estimate(columns[1] - columns[0]), signed=True))
            rows.append([level, str(len(keys)), f"pass@{k}", *cells])
    return Table("pass@k by level, mean over problems [95 % bootstrap interval over problems]", header, rows)


def _read_rows(path: Path) -> list[Mapping]:
    if not path.is_file():
        raise DumpError(
            f"{path}: no such file; veRL writes one file a validation if trainer.validation_data_dir is set"
        )
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DumpError(
                f"{path}, line {number}: not JSON ({error}); was the run stopped while it wrote?"
            ) from error
        if "input" not in row:
            raise DumpError(f"{path}, line {number}: no 'input'; is this a file of trainer.validation_data_dir?")
        rows.append(row)
    if not rows:
        raise DumpError(f"{path}: the file is empty")
    return rows


def _split_uid(row: Mapping, where: str) -> tuple[str, str, int]:
    parts = str(row.get("uid", "")).rsplit("_", 2)
    if len(parts) != 3 or not parts[2].isdigit():
        raise DumpError(f"{where}: 'uid' must be {{prompt}}_{{session}}_{{index}}, got {row.get('uid')!r}")
    return parts[0], parts[1], int(parts[2])


def _level(row: Mapping) -> str:
    if row.get("level") is None:
        raise DumpError(f"problem {row['uid']}: no 'level', though other rows have it; return it for every answer")
    return str(row["level"])


def _correct(row: Mapping, path: str | Path) -> int:
    value = row.get("acc")
    if value not in (0, 1):
        raise DumpError(
            f"{path}, answer {row['uid']}: 'acc' must be true, false, 0 or 1, got {value!r}; "
            "let the reward function return {'score': ..., 'acc': ...}"
        )
    return int(value)


def _values(label: str, seeds: Sequence[Dump], k: int) -> dict[tuple[str, int], float]:
    values: dict[tuple[str, int], float] = {}
    for problems in seeds:
        for problem in problems:
            if problem.answers < k:
                raise DumpError(
                    f"{label}: pass@{k} needs {k} answers a problem, got {problem.answers}; "
                    f"validate with n={k} and do_sample=true under actor_rollout_ref.rollout.val_kwargs"
                )
            value = pass_at_k(problem.answers, problem.correct, k)
            values[problem.key] = values.get(problem.key, 0.0) + value / len(seeds)
    return values


def _common_levels(
    dumps: Mapping[str, Sequence[Dump]],
) -> dict[str, list[tuple[str, int]]]:
    """Level -> keys of its problems; the last entry, `all`, holds every problem."""
    level_of: dict[tuple[str, int], str] | None = None
    for label, seeds in dumps.items():
        for problems in seeds:
            these = {problem.key: problem.level for problem in problems}
            if level_of is not None and these != level_of:
                raise DumpError(f"{label}: not the same problems; compare validations of one data.val_files")
            level_of = these
    if not level_of:
        raise DumpError("no dump was given")
    levels = {level: [key for key, its in level_of.items() if its == level] for level in sorted(set(level_of.values()))}
    return levels | {ALL_LEVELS: list(level_of)}


def cell(value: Estimate, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"
