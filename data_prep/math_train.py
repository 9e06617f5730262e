"""MATH, its training split. The answer is the contents of the last box of the solution.

Run it with `python -m data_prep.math_train`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import DataSet, MathProblem, Row, last_boxed, text
from verl_aer.data.prepare import run


def read(row: Row) -> MathProblem:
    about = {key: row[key] for key in ("level", "type") if isinstance(row.get(key), str)}
    return MathProblem(text(row, "problem"), last_boxed(text(row, "solution")), about)


DATA_SET = DataSet(
    name="math_train",
    hub="DigitalLearningGmbH/MATH-lighteval",
    role="train",
    read=read,
    columns=("problem", "solution", "level", "type"),
    about=("level", "type"),
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
