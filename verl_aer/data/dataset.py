"""What a script of `data_prep/` says of its data set: where it is, and how a row of it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_aer.errors import VerlAerError

BOXED = "Let's think step by step and output the final answer within \\boxed{}."
"""What follows a question, unless a script or its user says otherwise."""

Row = Mapping[str, Any]
"""A row as the source has it."""


class BadRow(VerlAerError, ValueError):
    """A row that cannot be a question with an answer; the message says why."""


@dataclass(frozen=True)
class MathProblem:
    """A question and its answer, and what else of the row is worth keeping."""

    question: str
    answer: str
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """A data set of the hub.

    name: of the file and, as ``data_source``, of its rows. hub, config, split: for `datasets.load_dataset`.
    read: a row -> its problem, or BadRow. columns: what ``read`` looks at; of a parquet file, nothing else is read.
    role: "train" or "evaluation". repeats: dotted paths of the columns that decide whether two rows are one; only a
    source that repeats its rows needs them, to be read fast.
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
    """Keys that ``read`` puts into ``MathProblem.about``, which become keys of ``extra_info``."""


def text(row: Row, key: str) -> str:
    """A column that has to be a text.

    Raises:
        BadRow: it is missing, empty or something else.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{key}: {'missing' if value is None else f'not a text: {value!r:.60}'}")
    return value.strip()


def number_or_text(row: Row, key: str) -> str:
    """A column that has an answer as a number or as a text: 27, 27.0 and "27" are one.

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
    """For rows with a column of questions and one of answers; ``about``: columns that are kept as texts."""

    def read(row: Row) -> MathProblem:
        kept = {key: str(row[key]) for key in about if row.get(key) is not None}
        return MathProblem(text(row, question), number_or_text(row, answer), kept)

    return read


def last_boxed(solution: str) -> str:
    r"""What the last \boxed{} or \fbox{} of a solution holds.

    >>> last_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> last_boxed(r"it is \boxed 7.")
    '7'

    Raises:
        BadRow: there is none, or it does not end.
    """
    begins = [match.end() for match in re.finditer(r"\\f?boxed\b\s*", solution)]
    if not begins:
        raise BadRow("solution: no \\boxed{} in it")
    rest = solution[begins[-1] :]
    if not rest.startswith("{"):
        bare = re.match(r"[^\s.,;$]+", rest)
        if bare is None:
            raise BadRow("solution: nothing in its last \\boxed")
        return bare.group()
    depth = 0
    for place, letter in enumerate(rest):
        escaped = place > 0 and rest[place - 1] == "\\"
        depth += (letter == "{" and not escaped) - (letter == "}" and not escaped)
        if depth == 0:
            return rest[1:place].strip()
    raise BadRow("solution: its last \\boxed{} does not end")


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
"""From the narrowest on; what is none of them is an expression."""


def answer_kind(answer: str) -> str:
    """Of which kind an answer is.

    >>> [answer_kind(answer) for answer in ("-7", "1,234", "0.5", "1, 2", "x = 2")]
    ['integer', 'integer', 'decimal', 'several answers', 'equation']
    >>> [answer_kind(answer) for answer in ("(1, 2)", "(C)", "Monday", "2x")]
    ['interval, tuple or set', 'choice', 'text', 'expression']
    """
    bare = answer.strip().strip("$").strip()
    return next((name for name, pattern in KINDS if pattern.fullmatch(bare)), "expression")
