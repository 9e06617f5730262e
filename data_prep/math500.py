"""MATH-500, for evaluation: 500 problems of MATH's test split, with subject and level.

Run it with `python -m data_prep.math500`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import DataSet, reader
from verl_aer.data.prepare import run

DATA_SET = DataSet(
    name="math500",
    hub="HuggingFaceH4/MATH-500",
    role="evaluation",
    read=reader("problem", "answer", about=("level", "subject")),
    columns=("problem", "answer", "level", "subject"),
    split="test",
    about=("level", "subject"),
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
