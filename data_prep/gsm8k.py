"""GSM8K, its training split. The answer follows `####` in the solution.

Run it with `python -m data_prep.gsm8k`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import BadRow, DataSet, MathProblem, Row, text
from verl_aer.data.prepare import run


def read(row: Row) -> MathProblem:
    solution, mark, answer = text(row, "answer").rpartition("####")
    if not mark or not answer.strip():
        raise BadRow("answer: no #### with a number after it")
    return MathProblem(text(row, "question"), answer.strip().replace(",", ""), {"solution": solution.strip()})


DATA_SET = DataSet(
    name="gsm8k",
    hub="openai/gsm8k",
    config="main",
    role="train",
    read=read,
    columns=("question", "answer"),
    about=("solution",),
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
