"""Countdown: the generator, the verifier compared with brute force, the split and the parquet files."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.countdown.prepare import (
    TEST_PER_LEVEL,
    held_out,
    held_out_canonicals,
    prepare,
    train_problems,
)
from examples.countdown.reward import evaluate, is_correct
from examples.countdown.task import (
    LARGEST_TARGET,
    LEVELS,
    LONGEST_ANSWER,
    LONGEST_PROMPT,
    CountdownProblem,
    random_problem,
    solve,
)


def expressions(numbers: tuple[int, ...]) -> list[tuple[str, int]]:
    """Every left-to-right expression of the numbers with its value, the value by a fold of Python's own."""
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    found = []
    for order in itertools.permutations(numbers):
        for operators in itertools.product(operations, repeat=len(numbers) - 1):
            value, text = order[0], str(order[0])
            for operator, number in zip(operators, order[1:], strict=True):
                value, text = operations[operator](value, number), f"{text}{operator}{number}"
            found.append((text, value))
    return found


def test_evaluation_goes_from_left_to_right():
    # (2 + 3) * 4 = 20; with the usual precedence it would be 14.
    assert evaluate("2+3*4") == 20
    # ((1 - 9) * 8) + 7 = -57: a negative value on the way is allowed.
    assert evaluate("1-9*8+7") == -57


@pytest.mark.parametrize("numbers", [(3, 5), (2, 2), (4, 7, 1), (6, 6, 9, 2)])
def test_verifier_agrees_with_brute_force(numbers):
    for target in range(LARGEST_TARGET + 1):
        problem = CountdownProblem(numbers, target)
        for text, value in expressions(numbers):
            assert is_correct(text, problem.key) == (value == target), (text, problem)


@pytest.mark.parametrize("numbers", [(3, 5), (2, 2), (4, 7, 1), (9, 9, 8, 7)])
def test_solver_agrees_with_brute_force(numbers):
    reachable = {value for _, value in expressions(numbers)}
    for target in range(LARGEST_TARGET + 1):
        problem = CountdownProblem(numbers, target)
        solution = solve(problem)
        assert (solution is not None) == (target in reachable)
        assert solution is None or is_correct(solution, problem.key)


@pytest.mark.parametrize("level", LEVELS)
def test_random_problems_are_solvable_and_fit_the_lengths(level):
    rng = np.random.default_rng(0)
    for _ in range(200):
        problem, answer = random_problem(rng, level)
        assert problem.level == level
        assert 0 <= problem.target <= LARGEST_TARGET
        assert is_correct(answer, problem.key)
        assert len(problem.prompt) <= LONGEST_PROMPT
        assert len(answer) <= LONGEST_ANSWER


def test_same_seed_gives_the_same_problems():
    assert train_problems(200, seed=3) == train_problems(200, seed=3)
    assert train_problems(200, seed=3) != train_problems(200, seed=4)
    assert held_out() == held_out()


def test_held_out_problems_are_different_and_as_many_as_stated():
    problems = held_out()
    assert {level: len(of_level) for level, of_level in problems.items()} == TEST_PER_LEVEL
    assert len(held_out_canonicals()) == sum(TEST_PER_LEVEL.values())


def test_no_order_of_a_held_out_problem_is_trained_on():
    # 1,500 draws at 500 a level would hit each of the 30 held-out problems of level 2 some three times.
    excluded = held_out_canonicals()
    assert not {problem.canonical for problem in train_problems(1500, seed=0)} & excluded
    assert CountdownProblem((5, 3), 8).canonical == CountdownProblem((3, 5), 8).canonical


def test_files_have_the_schema_that_verl_reads(tmp_path):
    train, test = prepare(tmp_path, train_rows=39, seed=0)
    rows = pq.read_table(train).to_pylist()
    assert [row["extra_info"]["level"] for row in rows] == [2, 3, 4] * 13
    assert len({row["extra_info"]["question_id"] for row in rows}) == 39
    assert pq.read_table(test).num_rows == sum(TEST_PER_LEVEL.values())
    for row in rows:
        key = row["reward_model"]["ground_truth"]
        assert row["prompt"] == [{"role": "user", "content": f"{key}:"}]
        assert row["data_source"] == f"countdown_k{row['extra_info']['level']}"
        assert is_correct(row["extra_info"]["solution"], key)


def test_files_are_the_same_bytes_again_and_leave_nothing_else(tmp_path):
    first = [path.read_bytes() for path in prepare(tmp_path / "a", train_rows=40, seed=0)]
    second = [path.read_bytes() for path in prepare(tmp_path / "b", train_rows=40, seed=0)]
    assert first == second
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["test.parquet", "train.parquet"]
