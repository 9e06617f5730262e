"""AMC 2023, for evaluation: 40 problems. The hub stores some integer answers as decimals such as 27.0.

Run it with `python -m data_prep.amc23`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import DataSet, reader
from verl_aer.data.prepare import run

DATA_SET = DataSet(
    name="amc23",
    hub="math-ai/amc23",
    role="evaluation",
    read=reader("question", "answer"),
    columns=("question", "answer"),
    split="test",
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
