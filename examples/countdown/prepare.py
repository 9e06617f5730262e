"""Write Countdown's train and test parquet files in veRL's schema.

    python -m examples.countdown.prepare --out data/countdown

The same seed gives the same bytes for one version of pyarrow. No problem of the test file, with its numbers in any
order, is in the train file or among the examples of the warm start.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from examples.countdown.task import LEVELS, CountdownProblem, held_out_problems, random_problem, solve
from verl_aer._files import replaced_atomically

SPLIT_SEED = 20
"""Seed of the held-out problems. The warm start excludes the same problems, for any training seed."""
TEST_PER_LEVEL = {2: 30, 3: 100, 4: 100}
"""Number of held-out problems. Level 2 has only about 140 different problems and holds out a fifth of them."""
TRAIN_ROWS = 9600


def data_source(level: int) -> str:
    """Name one data source per level: veRL reports validation metrics by data source."""
    return f"countdown_k{level}"


def row(problem: CountdownProblem, split: str, index: int) -> dict:
    """Make a row of veRL's schema."""
    return {
        "data_source": data_source(problem.level),
        "prompt": [{"role": "user", "content": problem.prompt}],
        "ability": "arithmetic",
        "reward_model": {"style": "rule", "ground_truth": problem.key},
        "extra_info": {
            "split": split,
            "index": index,
            "question_id": f"{split}-{index:05d}",
            "level": problem.level,
            "solution": solve(problem),
        },
    }


def held_out() -> dict[int, list[CountdownProblem]]:
    """Draw the test problems, by level."""
    return held_out_problems(SPLIT_SEED, TEST_PER_LEVEL)


def held_out_canonicals() -> frozenset[tuple]:
    """Return the canonical forms of the test problems, which training excludes."""
    return frozenset(problem.canonical for problems in held_out().values() for problem in problems)


def train_problems(rows: int, seed: int) -> list[CountdownProblem]:
    """Draw `rows` random problems, cycling through the levels. There are few easy problems, so they repeat."""
    excluded = held_out_canonicals()
    rng = np.random.default_rng([seed, rows])
    return [random_problem(rng, LEVELS[i % len(LEVELS)], excluded)[0] for i in range(rows)]


def write_parquet(rows: list[dict], path: Path) -> None:
    """Write a parquet file atomically."""
    with replaced_atomically(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")


def prepare(out: Path, train_rows: int, seed: int) -> tuple[Path, Path]:
    """Write `train.parquet` and `test.parquet` into `out` and return their paths."""
    train, test = out / "train.parquet", out / "test.parquet"
    test_problems = [problem for problems in held_out().values() for problem in problems]
    write_parquet([row(p, "train", i) for i, p in enumerate(train_problems(train_rows, seed))], train)
    write_parquet([row(p, "test", i) for i, p in enumerate(test_problems)], test)
    return train, test


def main() -> None:
    parser = argparse.ArgumentParser(description="Write Countdown's train and test files for veRL.")
    parser.add_argument("--out", type=Path, default=Path("data/countdown"), help="folder for the two files")
    parser.add_argument("--train-rows", type=int, default=TRAIN_ROWS, help="prompts in train.parquet")
    parser.add_argument("--seed", type=int, default=0, help="seed of the train prompts")
    arguments = parser.parse_args()
    train, test = prepare(arguments.out, arguments.train_rows, arguments.seed)
    print(f"wrote {train} ({arguments.train_rows} prompts) and {test} ({sum(TEST_PER_LEVEL.values())} prompts)")


if __name__ == "__main__":
    main()
