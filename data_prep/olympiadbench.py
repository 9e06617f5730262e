"""OlympiadBench, for evaluation: its 674 open-ended English mathematics problems without pictures.

The hub stores an answer as a list; several answers become one text, joined by commas. A context precedes its question.
Problems whose answer is a number within an error are left out, because a rule for equality would misjudge them.

Run it with `python -m data_prep.olympiadbench`; see `--help`.
"""

from __future__ import annotations

import sys

from verl_aer.data.dataset import BadRow, DataSet, MathProblem, Row, text
from verl_aer.data.prepare import run


def read(row: Row) -> MathProblem:
    answers = row.get("final_answer")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise BadRow("final_answer: not a list of texts")
    if row.get("error"):
        raise BadRow("error: the answer has a tolerance, which no rule for equality can judge")
    context = row.get("context")
    question = f"{context.strip()}\n\n{text(row, 'question')}" if context else text(row, "question")
    answer = ", ".join(part.strip().strip("$") for part in answers)
    about = {key: row[key] for key in ("answer_type", "subfield", "unit") if isinstance(row.get(key), str)}
    return MathProblem(question, text({"final_answer": answer}, "final_answer"), about)


DATA_SET = DataSet(
    name="olympiadbench",
    hub="Hothan/OlympiadBench",
    config="OE_TO_maths_en_COMP",
    role="evaluation",
    read=read,
    columns=("question", "context", "final_answer", "error", "answer_type", "subfield", "unit"),
    about=("answer_type", "subfield", "unit"),
)

if __name__ == "__main__":
    sys.exit(run(DATA_SET))
