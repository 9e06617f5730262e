"""pass@k: the estimator against counting, the dump reader against veRL's own line format."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from verl_aer._tables import as_markdown
from verl_aer.evaluation.pass_at_k import (
    DumpError,
    ProblemResult,
    estimate,
    pass_at_k,
    pass_at_k_table,
    read_dump,
)


def line(uid: str, session: int, index: int, acc: object, prompt: str = "p", **extra: object) -> dict:
    """One line as veRL's `_dump_generations` writes it."""
    return {
        "input": prompt,
        "output": "o",
        "gts": "g",
        "score": 0.0,
        "step": 7,
        "reward": 0.0,
        "acc": acc,
        "uid": f"{uid}_{session}_{index}",
        **extra,
    }


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path


@pytest.mark.parametrize(("answers", "correct"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 4), (6, 6)])
def test_equals_counting_all_draws_without_replacement(answers: int, correct: int) -> None:
    right = [True] * correct + [False] * (answers - correct)
    for k in range(1, answers + 1):
        draws = list(combinations(right, k))
        assert pass_at_k(answers, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_stays_exact_where_factorials_overflow() -> None:
    # 1 - C(1999, 1000)/C(2000, 1000) = 1 - 1000/2000
    assert pass_at_k(answers=2000, correct=1, k=1000) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(("answers", "correct", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_refuses_impossible_counts(answers: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be in"):
        pass_at_k(answers, correct, k)


def test_reader_takes_the_final_output_of_each_session(tmp_path: Path) -> None:
    # Session 0 of problem a emits two outputs; only the last one, wrong, counts. uids may hold "_".
    dump = write(
        tmp_path / "7.jsonl",
        [
            line("a_x", 0, 1, 0.0, prompt="A", level=2),
            line("a_x", 0, 0, 1.0, prompt="A", level=2),
            line("a_x", 1, 0, 1.0, prompt="A", level=2),
            line("b", 0, 0, True, prompt="B", level=3),
            line("b", 1, 0, False, prompt="B", level=3),
        ],
    )
    assert read_dump(dump) == [
        ProblemResult(key=("A", 0), level="2", answers=2, correct=1),
        ProblemResult(key=("B", 0), level="3", answers=2, correct=1),
    ]


def test_the_same_prompt_twice_is_two_problems(tmp_path: Path) -> None:
    dump = write(tmp_path / "7.jsonl", [line("a", 0, 0, 1.0), line("b", 0, 0, 0.0)])
    assert [(problem.key, problem.level) for problem in read_dump(dump)] == [(("p", 0), "all"), (("p", 1), "all")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        ([line("a", 0, 0, None)], r"'acc' must be .* got None; let the reward function return"),
        ([line("a", 0, 0, 0.5)], "got 0.5"),
        ([line("a", 0, 0, 1.0) | {"uid": "a"}], "line 1: 'uid' must be"),
        ([line("a", 0, 0, 1.0, level=2), line("b", 0, 0, 1.0)], "answer b_0_0: no 'level'|b_0_0: no 'level'"),
        ([{"step": 1, "data": {}}], "no 'input'"),
    ],
)
def test_reader_names_what_is_wrong(tmp_path: Path, lines: list[dict], message: str) -> None:
    with pytest.raises(DumpError, match=message):
        read_dump(write(tmp_path / "7.jsonl", lines))


def test_reader_names_a_missing_and_a_truncated_file(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="validation_data_dir"):
        read_dump(tmp_path / "8.jsonl")
    (tmp_path / "7.jsonl").write_text('{"input": "p", "ui')
    with pytest.raises(DumpError, match="line 1: not JSON"):
        read_dump(tmp_path / "7.jsonl")


def test_interval_of_a_known_distribution() -> None:
    # 400 problems, half of them solved: the standard error is 0.5/sqrt(400) = 0.025, the interval +- 1.96 of it.
    result = estimate(np.repeat([0.0, 1.0], 200))
    assert result.mean == 0.5
    assert result.low == pytest.approx(0.5 - 0.049, abs=0.006)
    assert result.high == pytest.approx(0.5 + 0.049, abs=0.006)
    assert estimate(np.ones(7)) == (1.0, 1.0, 1.0, 7)


def problem(name: str, level: str, correct: int, answers: int = 4) -> ProblemResult:
    return ProblemResult(key=(name, 0), level=level, answers=answers, correct=correct)


def test_table_by_level_with_paired_change() -> None:
    before = [problem("A", "2", 2), problem("B", "3", 0)]
    after = [problem("B", "3", 1), problem("A", "2", 4)]
    table = pass_at_k_table({"before": [before], "after": [after]}, ks=[1, 4])
    assert table.header == ["level", "problems", "metric", "before", "after", "change"]
    # Level 2: 2/4 -> 4/4. Level 3: 0/4 -> 1/4. All: mean(0.5, 0) -> mean(1, 0.25).
    # Each level has one problem, so its interval has no width; the changes of both levels are +0.5 and +0.25.
    assert table.rows[0] == [
        "2",
        "1",
        "pass@1",
        "0.500 [0.500, 0.500]",
        "1.000 [1.000, 1.000]",
        "+0.500 [+0.500, +0.500]",
    ]
    assert table.rows[1] == [
        "3",
        "1",
        "pass@1",
        "0.000 [0.000, 0.000]",
        "0.250 [0.250, 0.250]",
        "+0.250 [+0.250, +0.250]",
    ]
    assert table.rows[2][:3] == ["all", "2", "pass@1"]
    assert table.rows[2][3:] == ["0.250 [0.000, 0.500]", "0.625 [0.250, 1.000]", "+0.375 [+0.250, +0.500]"]
    # pass@4 of 4 answers: 1 as soon as one is right.
    assert [row[3][:5] for row in table.rows[3:]] == ["1.000", "0.000", "0.500"]
    assert as_markdown(table).splitlines()[1] == "|" + " --- |" * 6


def test_seeds_are_averaged_problem_by_problem() -> None:
    # pass@1 of A is 1/4 with one seed and 3/4 with the other; pooled answers would give the same here, but pass@4
    # would be 1 for pooled answers and is mean(1, 0) = 0.5 for seeds with 4 and 0 right answers.
    table = pass_at_k_table({"aer": [[problem("A", "2", 4)], [problem("A", "2", 0)]]}, ks=[4])
    assert table.rows[0][3].startswith("0.500")


def test_table_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(DumpError, match="after: not the same problems"):
        pass_at_k_table({"before": [[problem("A", "2", 1)]], "after": [[problem("B", "2", 1)]]})
    with pytest.raises(DumpError, match="pass@8 needs 8 answers a problem, got 4; validate with n=8"):
        pass_at_k_table({"run": [[problem("A", "2", 1)]]}, ks=[8])
