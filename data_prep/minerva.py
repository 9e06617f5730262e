"""Minerva's undergraduate problems (OCWCourses), for evaluation: 272 problems, many with numbers and units.

Run it with `python -m data_prep.minerva`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import DataSet, reader
from verl_aer.data.prepare import run

DATA_SET = DataSet(
    name="minerva",
    hub="math-ai/minervamath",
    role="evaluation",
    read=reader("question", "answer"),
    columns=("question", "answer"),
    split="test",
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
