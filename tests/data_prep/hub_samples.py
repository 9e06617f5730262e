"""A few rows of each data set in the exact shape that the hub has them, quirks included; the problems are made up."""

from __future__ import annotations

from typing import Any, NamedTuple

from data_prep.dapo_math_17k import AFTER, BEFORE


class Sample(NamedTuple):
    """rows: as the hub has them. answers: those of the rows that are kept, in their order. bad, left_out: how many."""

    rows: list[dict[str, Any]]
    answers: list[str]
    bad: int = 0
    left_out: int = 0


def dapo(question: str, answer: Any, index: str = "a1") -> dict[str, Any]:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": f"{BEFORE}{question}{AFTER}", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def openr1(problem: str, answer: str | None, question_type: str = "math-word-problem") -> dict[str, Any]:
    return {
        "problem": problem,
        "solution": "Count them.",
        "answer": answer,
        "problem_type": "Number Theory",
        "question_type": question_type,
        "source": "olympiads",
        "uuid": "00000000-0000-0000-0000-000000000000",
        "is_reasoning_complete": [True, False],
        "generations": ["…", "…"],
        "correctness_math_verify": [True, False],
        "correctness_llama": None,
        "finish_reasons": None,
        "correctness_count": 1,
        "messages": [{"content": problem, "role": "user"}],
    }


def olympiad(question: str, final_answer: list[str] | None, **more: Any) -> dict[str, Any]:
    row = {
        "id": 7,
        "question": question,
        "solution": ["Look at it."],
        "final_answer": final_answer,
        "context": None,
        "image_1": None,
        "modality": "Text-only",
        "difficulty": "Competition",
        "is_multiple_answer": bool(final_answer) and len(final_answer) > 1,
        "unit": None,
        "answer_type": "Numerical",
        "error": None,
        "question_type": "Open-ended",
        "subfield": "Algebra",
        "subject": "Math",
        "language": "English",
    }
    return {**row, **more}


def math_row(problem: str, solution: str) -> dict[str, Any]:
    return {"problem": problem, "level": "Level 3", "solution": solution, "type": "Algebra"}


def aime(problem: str, answer: Any) -> dict[str, Any]:
    return {"id": 60, "problem": problem, "solution": "…", "answer": answer, "url": "https://…", "year": "2024"}


def deepmath(question: str, final_answer: str) -> dict[str, Any]:
    solutions = {f"r1_solution_{number}": "…" for number in (1, 2, 3)}
    return {"question": question, "final_answer": final_answer, "difficulty": 6.5, "topic": "Calculus", **solutions}


def math500(problem: str, answer: str, level: int = 2) -> dict[str, Any]:
    where = {"subject": "Algebra", "level": level, "unique_id": "test/algebra/1.json"}
    return {"problem": problem, "solution": f"It is $\\boxed{{{answer}}}$.", "answer": answer, **where}


SAMPLES = {
    "dapo_math_17k": Sample(
        [
            *[dapo("How many apples are seven apples and five apples?", "12")] * 5,
            dapo("What is the 7th prime? Solve for it.", "17", "b2"),
            dapo("How many apples are seven apples and five apples?", "13"),
            dapo("what is the 7th prime?  Solve for it", "17"),
            dapo("A question without an answer", None),
        ],
        ["12", "17"],
        bad=1,
        left_out=6,
    ),
    "openr1_math": Sample(
        [
            openr1("Find the sum of the digits of $2^{10}$.", "7"),
            openr1("Show that there are infinitely many primes.", "proof", "proof"),
            openr1("Which of these is even? (A) 1 (B) 2", "B", "MCQ"),
            openr1("A problem whose answer got lost", None),
            openr1("Solve $x^2 = 2$ for $x > 0$.", "\\sqrt{2}"),
        ],
        ["7", "B", "\\sqrt{2}"],
        bad=2,
    ),
    "deepmath_103k": Sample(
        [deepmath("Evaluate the limit of $\\frac{1}{n}$.", "0"), deepmath("Is the series convergent?", "Yes")],
        ["0", "Yes"],
    ),
    "math_train": Sample(
        [
            math_row("What is half of 3?", "First $\\boxed{1}$, but no: $\\boxed{\\frac{3}{2}}$."),
            math_row("What is 2 + 2?", "It is $\\boxed 4$."),
            math_row("What is lost?", "It is not known."),
            math_row("What is 3 + 3?", "It is $\\boxed{6"),
        ],
        ["\\frac{3}{2}", "4"],
        bad=2,
    ),
    "gsm8k": Sample(
        [
            {"question": "Ann has 3 boxes of 500 nails. How many?", "answer": "3*500=<<3*500=1500>>1500\n#### 1,500"},
            {"question": "Bob has none.", "answer": "So he has none."},
        ],
        ["1500"],
        bad=1,
    ),
    "aime24": Sample(
        [aime("Find the remainder.", "033"), aime("Find the number.", 204), aime("Find the fraction.", "1/2")],
        ["33", "204"],
        bad=1,
    ),
    "aime25": Sample([{"problem": "Find the sum of the bases.", "answer": "70", "id": "0"}], ["70"]),
    "amc23": Sample(
        [
            {"id": 0, "question": "How far do they ride?", "answer": 27.0, "url": "https://…"},
            {"id": 1, "question": "What is the ratio?", "answer": 0.5, "url": "https://…"},
        ],
        ["27", "0.5"],
    ),
    "math500": Sample(
        [math500("Convert the point.", "\\left( 3, \\frac{\\pi}{2} \\right)"), math500("Add them.", "5", level=5)],
        ["\\left( 3, \\frac{\\pi}{2} \\right)", "5"],
    ),
    "olympiadbench": Sample(
        [
            olympiad("Find all solutions.", ["$1$", "$-1$"]),
            olympiad("And how many are there?", ["2"], context="Let $x^2 = 1$."),
            olympiad("How far is it?", ["3.1"], error="1e-1", unit="m"),
            olympiad("Prove it.", None),
        ],
        ["1, -1", "2"],
        bad=2,
    ),
    "minerva": Sample(
        [{"question": "At what redshift?", "answer": "6"}, {"question": "Which energy?", "answer": "1.6e-19"}],
        ["6", "1.6e-19"],
    ),
}
