"""AIME 2024, for evaluation: 30 problems with integer answers from 0 to 999; 033 is 33.

Run it with `python -m data_prep.aime24`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import BadRow, DataSet, MathProblem, Row, number_or_text, text
from verl_aer.data.prepare import run


def read(row: Row) -> MathProblem:
    answer = number_or_text(row, "answer")
    if not answer.isdecimal() or int(answer) > 999:
        raise BadRow("answer: not an integer from 0 to 999")
    return MathProblem(text(row, "problem"), str(int(answer)))


DATA_SET = DataSet(
    name="aime24",
    hub="HuggingFaceH4/aime_2024",
    role="evaluation",
    read=read,
    columns=("problem", "answer"),
    split="train",
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
