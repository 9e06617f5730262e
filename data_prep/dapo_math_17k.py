"""DAPO-Math-17k, for training: 17 thousand problems with integer answers. The hub repeats each about a hundred times.

Its rows are already in veRL's schema, with another instruction around the problem, which is removed.

Run it with `python -m data_prep.dapo_math_17k`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import BadRow, DataSet, MathProblem, Row, text
from verl_aer.data.prepare import run

BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def read(row: Row) -> MathProblem:
    prompt, reward = row.get("prompt"), row.get("reward_model")
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], dict):
        raise BadRow("prompt: not a list of messages")
    if not isinstance(reward, dict):
        raise BadRow("reward_model: missing")
    question = text(prompt[0], "content").removeprefix(BEFORE.strip()).removesuffix(AFTER.strip()).strip()
    if not question:
        raise BadRow("prompt: an instruction without a problem")
    return MathProblem(question, text(reward, "ground_truth"))


DATA_SET = DataSet(
    name="dapo_math_17k",
    hub="BytedTsinghua-SIA/DAPO-Math-17k",
    role="train",
    read=read,
    columns=("prompt", "reward_model"),
    repeats=("prompt.0.content", "reward_model.ground_truth"),
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
