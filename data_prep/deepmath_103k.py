"""DeepMath-103K, for training: hard problems with a difficulty and a topic.

Run it with `python -m data_prep.deepmath_103k`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import DataSet, reader
from verl_aer.data.prepare import run

DATA_SET = DataSet(
    name="deepmath_103k",
    hub="zwhe99/DeepMath-103K",
    role="train",
    read=reader("question", "final_answer", about=("difficulty", "topic")),
    columns=("question", "final_answer", "difficulty", "topic"),
    about=("difficulty", "topic"),
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
