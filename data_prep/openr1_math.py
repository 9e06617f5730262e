"""OpenR1-Math-220k, for training. Proofs are left out, because no rule can check them.

Run it with `python -m data_prep.openr1_math`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import BadRow, DataSet, MathProblem, Row, number_or_text, text
from verl_aer.data.prepare import run


def read(row: Row) -> MathProblem:
    if row.get("question_type") == "proof":
        raise BadRow("question_type: a proof, which no rule can check")
    about = {key: row[key] for key in ("problem_type", "source") if isinstance(row.get(key), str)}
    return MathProblem(text(row, "problem"), number_or_text(row, "answer"), about)


DATA_SET = DataSet(
    name="openr1_math",
    hub="open-r1/OpenR1-Math-220k",
    config="default",
    role="train",
    read=read,
    columns=("problem", "answer", "question_type", "problem_type", "source"),
    about=("problem_type", "source"),
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
