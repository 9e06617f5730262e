"""AIME 2025, for evaluation: 30 problems with integer answers from 0 to 999; 033 is 33.

Run it with `python -m data_prep.aime25`; see `--help`.
"""

from __future__ import annotations

import sys

from data_prep.aime24 import read
from verl_aer.data.dataset import DataSet
from verl_aer.data.prepare import run

DATA_SET = DataSet(
    name="aime25",
    hub="math-ai/aime25",
    role="evaluation",
    read=read,
    columns=("problem", "answer"),
    split="test",
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
