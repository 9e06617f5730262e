"""Describe a data set for a script of `data_prep/`: its location and how to read a row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_aer.errors import VerlAerError

BOXED = "Let's think step by step and output the final answer within \\boxed{}."
"""Default instruction after a question."""

Row = Mapping[str, Any]
"""A row of the source."""


class BadRow(VerlAerError, ValueError):
    """A row without a usable question and answer. The message gives the cause."""


@dataclass(frozen=True)
class MathProblem:
    """A question, its answer, and other columns of the row that are kept."""

    question: str
    answer: str
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """A data set of the hub.

    name: of the file and, as ``data_source``, of its rows. hub, config, split: arguments of `datasets.load_dataset`.
    read: converts a row to a problem, or raises BadRow. columns: columns that ``read`` uses; of a parquet file, only
    these are read. role: "train" or "evaluation". repeats: dotted paths of the columns that identify repeated rows, to
    skip them fast; only needed for a source that repeats its rows.
    """

    name: str
    hub: str
    role: str
    read: Callable[[Row], MathProblem]
    columns: tuple[str, ...]
    config: str | None = None
    split: str = "train"
    repeats: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    """Keys of ``MathProblem.about``, which become keys of ``extra_info``."""


def text(row: Row, key: str) -> str:
    """Read a text column.

    Raises:
        BadRow: the value is missing, empty or not a text.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{key}: {'missing' if value is None else f'not a text: {value!r:.60}'}")
    return value.strip()


def number_or_text(row: Row, key: str) -> str:
    """Read an answer that is a number or a text. 27, 27.0 and "27" give the same text.

    >>> [number_or_text({"answer": answer}, "answer") for answer in (27, 27.0, " 27 ", "27.0", 0.5, r"\\frac{1}{2}")]
    ['27', '27', '27', '27', '0.5', '\\\\frac{1}{2}']
    """
    value = row.get(key)
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise BadRow(f"{key}: not an answer: {value!r}")
    if isinstance(value, int | float):
        value = str(value)
    answer = text({key: value}, key)
    whole = re.fullmatch(r"(-?\d+)\.0+", answer)
    return whole.group(1) if whole else answer


def reader(question: str, answer: str, about: tuple[str, ...] = ()) -> Callable[[Row], MathProblem]:
    """Make a reader for rows with a question and an answer column; the columns ``about`` are kept as texts."""

    def read(row: Row) -> MathProblem:
        kept = {key: str(row[key]) for key in about if row.get(key) is not None}
        return MathProblem(text(row, question), number_or_text(row, answer), kept)

    return read


def last_boxed(solution: str) -> str:
    r"""Return the contents of the last \boxed{} or \fbox{} of a solution.

    >>> last_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> last_boxed(r"it is \boxed 7.")
    '7'

    Raises:
        BadRow: there is no box, or the last one is incomplete.
    """
    begins = [match.end() for match in re.finditer(r"\\f?boxed\b\s*", solution)]
    if not begins:
        raise BadRow("solution: no \\boxed{}")
    rest = solution[begins[-1] :]
    if not rest.startswith("{"):
        bare = re.match(r"[^\s.,;$]+", rest)
        if bare is None:
            raise BadRow("solution: its last \\boxed is empty")
        return bare.group()
    depth = 0
    for place, letter in enumerate(rest):
        escaped = place > 0 and rest[place - 1] == "\\"
        depth += (letter == "{" and not escaped) - (letter == "}" and not escaped)
        if depth == 0:
            return rest[1:place].strip()
    raise BadRow("solution: its last \\boxed{} is incomplete")


KINDS = (
    ("integer", re.compile(r"-?\d{1,3}(?:,\d{3})+|-?\d+")),
    ("decimal", re.compile(r"-?\d*\.\d+")),
    ("fraction", re.compile(r"-?(?:\d+/\d+|\\[dt]?frac\s*\{-?\d+\}\s*\{\d+\}|\\[dt]?frac\d{2})")),
    ("choice", re.compile(r"\(?[A-E]\)?|\\text(?:bf)?\{\(?[A-E]\)?\}")),
    ("interval, tuple or set", re.compile(r"(?:\\left\s*)?(?:[(\[]|\\\{).*,.*(?:[)\]]|\\\})", re.DOTALL)),
    ("several answers", re.compile(r"[^,]+(?:,[^,]+)+")),
    ("equation", re.compile(r"[^=]+=[^=]+")),
    ("text", re.compile(r"(?:\\text\w*\{[^{}]*\}|[A-Za-z][A-Za-z' -]+)")),
)
"""Kinds of answers, the narrowest first. Any other answer is an expression."""


def answer_kind(answer: str) -> str:
    """Classify an answer.

    >>> [answer_kind(answer) for answer in ("-7", "1,234", "0.5", "1, 2", "x = 2")]
    ['integer', 'integer', 'decimal', 'several answers', 'equation']
    >>> [answer_kind(answer) for answer in ("(1, 2)", "(C)", "Monday", "2x")]
    ['interval, tuple or set', 'choice', 'text', 'expression']
    """
    bare = answer.strip().strip("$").strip()
    return next((name for name, pattern in KINDS if pattern.fullmatch(bare)), "expression")
