"""The reader of validation dumps with veRL's line format, and comparisons of dumps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_aer._tables import as_markdown
from verl_aer.evaluation.comparison import compare
from verl_aer.evaluation.validation_dumps import DumpError, read_dump


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


def dump(path: Path, problems: dict[str, tuple[int, str]]) -> Path:
    """`problems`: prompt -> (its level, "1" or "0" for each of its answers)."""
    lines = [
        line(f"{path.stem}{prompt}", session, 0, letter == "1", prompt=prompt, level=level)
        for prompt, (level, correct) in problems.items()
        for session, letter in enumerate(correct)
    ]
    return write(path, lines)


def test_reader_takes_the_final_output_of_each_session(tmp_path: Path) -> None:
    # Session 0 of problem a and session 1 of b emit two outputs; only the last one, wrong, counts. uids may hold "_".
    path = write(
        tmp_path / "7.jsonl",
        [
            line("a_x", 0, 1, 0.0, prompt="A", level=2),
            line("a_x", 0, 0, 1.0, prompt="A", level=2),
            line("a_x", 1, 0, 1.0, prompt="A", level=2),
            line("b", 0, 0, True, prompt="B", level=3),
            line("b", 1, 0, True, prompt="B", level=3),
            line("b", 1, 1, False, prompt="B", level=3),
        ],
    )
    first, second = read_dump(path)
    assert (first.level, first.correct) == ("2", (False, True))
    assert (second.level, second.correct) == ("3", (True, False))


def test_answers_have_the_text_that_the_reward_found_or_else_all(tmp_path: Path) -> None:
    lines = [line("a", 0, 0, 1, pred="4"), line("a", 1, 0, 0, output=" so 5 \n"), line("a", 2, 0, 0, pred=None)]
    (answers,) = read_dump(write(tmp_path / "7.jsonl", lines))
    assert answers.texts == ("4", "so 5", "o")
    assert (answers.tokens, answers.mean_nll) == ((), ())


def test_the_same_prompt_twice_is_two_problems(tmp_path: Path) -> None:
    first, second = read_dump(write(tmp_path / "7.jsonl", [line("a", 0, 0, 1.0), line("b", 0, 0, 0.0)]))
    assert first.problem != second.problem
    assert first.level == second.level == "none"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        ([line("a", 0, 0, None)], r"'acc' must be .* got None; let the reward function return"),
        ([line("a", 0, 0, 0.5)], "got 0.5"),
        ([line("a", 0, 0, 1.0) | {"uid": "a"}], "line 1: 'uid' must be"),
        ([line("a", 0, 0, 1.0, level=2), line("b", 0, 0, 1.0)], "answer b_0_0: no 'level'"),
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


def test_dumps_are_compared_by_level_problem_by_problem(tmp_path: Path) -> None:
    before = dump(tmp_path / "0.jsonl", {"A": (2, "1100"), "B": (3, "0000")})
    after = dump(tmp_path / "9.jsonl", {"B": (3, "1000"), "A": (2, "1111")})
    table = compare({"before": [before], "after": [after]}, ks=[1, 4])
    assert table.header == ["", "problems", "metric", "run", "mean", "minus before", "95 % CI excludes 0"]
    # Level 2: 2/4 -> 4/4. Level 3: 0/4 -> 1/4. All: mean(0.5, 0) -> mean(1, 0.25).
    # Each level has one problem, so its interval has no width; the changes of both levels are +0.5 and +0.25.
    rows = {tuple(row[:4]): row[4:] for row in table.rows}
    assert rows["level 2", "1", "pass@1", "before"] == ["0.500 [0.500, 0.500]", "", ""]
    assert rows["level 2", "1", "pass@1", "after"] == ["1.000 [1.000, 1.000]", "+0.500 [+0.500, +0.500]", "yes"]
    assert rows["level 3", "1", "pass@1", "before"] == ["0.000 [0.000, 0.000]", "", ""]
    assert rows["level 3", "1", "pass@1", "after"] == ["0.250 [0.250, 0.250]", "+0.250 [+0.250, +0.250]", "yes"]
    assert rows["all", "2", "pass@1", "before"] == ["0.250 [0.000, 0.500]", "", ""]
    assert rows["all", "2", "pass@1", "after"] == ["0.625 [0.250, 1.000]", "+0.375 [+0.250, +0.500]", "yes"]
    # pass@4 of 4 answers: 1 as soon as one is right.
    assert rows["all", "2", "pass@4", "before"][0] == "0.500 [0.000, 1.000]"
    assert rows["all", "2", "pass@4", "after"] == ["1.000 [1.000, 1.000]", "+0.500 [+0.000, +1.000]", "no"]
    assert as_markdown(table).splitlines()[1] == "|" + " --- |" * 7


def test_a_dump_given_without_another_has_a_column_per_metric(tmp_path: Path) -> None:
    table = compare({"run": [dump(tmp_path / "9.jsonl", {"A": (2, "1000"), "B": (3, "1111")})]})
    assert table.header == ["", "problems", "pass@1", "pass@2", "pass@4", "maj@4"]
    assert [row[:3] for row in table.rows] == [
        ["level 2", "1", "0.250 [0.250, 0.250]"],
        ["level 3", "1", "1.000 [1.000, 1.000]"],
        ["all", "2", "0.625 [0.250, 1.000]"],
    ]


def test_seeds_are_averaged_problem_by_problem(tmp_path: Path) -> None:
    # pass@1 of A is 1/4 with one seed and 3/4 with the other; pooled answers would give the same here, but pass@4
    # would be 1 for pooled answers and is mean(1, 0) = 0.5 for seeds with 4 and 0 right answers.
    seeds = [dump(tmp_path / "a.jsonl", {"A": (2, "1111")}), dump(tmp_path / "b.jsonl", {"A": (2, "0000")})]
    table = compare({"aer": seeds}, ks=[4])
    assert table.rows[0][2].startswith("0.500")


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first, other = dump(tmp_path / "a.jsonl", {"A": (2, "1000")}), dump(tmp_path / "b.jsonl", {"B": (2, "1000")})
    with pytest.raises(ValueError, match="after: the problems differ; 2 are in only one of two runs"):
        compare({"before": [first], "after": [other]})
    with pytest.raises(ValueError, match=r"run: pass@8 needs 8 answers per problem, there are 4; .* validate with n=8"):
        compare({"run": [first]}, ks=[8])
    with pytest.raises(ValueError, match="--k 0: k must be at least 1"):
        compare({"run": [first]}, ks=[0, 1])
    (tmp_path / "evaluation").mkdir()
    with pytest.raises(ValueError, match="compare folders with folders, or dumps with dumps"):
        compare({"before": [first], "after": [tmp_path / "evaluation"]})
