"""Compare preparing 1.79 million rows in DAPO-Math-17k's shape with pandas' read and drop_duplicates.

    python -m benchmarks.data

Both run in separate processes, one after the other, on the same file. The tables show the seconds of the work, and the
peak memory of the process including its libraries. The rows are synthetic: 17,917 problems, each a hundred times, in
random order.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.timing import machine
from data_prep.dapo_math_17k import AFTER, BEFORE, DATA_SET
from verl_aer._tables import Table, as_markdown

PROBLEMS, COPIES = 17_917, 100
ROWS_AT_ONCE = 100_000


def make(file: Path) -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(PROBLEMS * COPIES) % PROBLEMS
    filler = " ".join(f"and then some more of quantity {number}" for number in range(6))
    contents = [f"{BEFORE}Find the value of number {problem} {filler}.{AFTER}" for problem in range(PROBLEMS)]
    with pq.ParquetWriter(file, schema()) as writer:
        for start in range(0, len(order), ROWS_AT_ONCE):
            problems = order[start : start + ROWS_AT_ONCE].tolist()
            rows = [
                {
                    "data_source": "math_dapo",
                    "prompt": [{"content": contents[problem], "role": "user"}],
                    "ability": "MATH",
                    "reward_model": {"ground_truth": str(problem), "style": "rule-lighteval/MATH_v2"},
                    "extra_info": {"index": f"{number:032x}"},
                }
                for number, problem in enumerate(problems, start=start)
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema()))


def schema() -> pa.Schema:
    text = pa.string()
    return pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"content": text, "role": text})),
            "ability": text,
            "reward_model": pa.struct({"ground_truth": text, "style": text}),
            "extra_info": pa.struct({"index": text}),
        }
    )


def ours(file: Path) -> int:
    from verl_aer.data.prepare import prepare

    return prepare(DATA_SET, file.with_name("ours.parquet"), [file]).rows_out


def pandas(file: Path) -> int:
    """Deduplicate the rows as a notebook would."""
    import pandas as pd

    frame = pd.read_parquet(file)
    frame["question"] = frame["prompt"].map(lambda prompt: prompt[0]["content"])
    frame["answer"] = frame["reward_model"].map(lambda reward: reward["ground_truth"])
    kept = frame.drop_duplicates(["question", "answer"])
    kept.to_parquet(file.with_name("pandas.parquet"))
    return len(kept)


WAYS = {"ours": ours, "pandas": pandas}


def child(way: str, file: str) -> None:
    start = time.perf_counter()
    rows = WAYS[way](Path(file))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"rows": rows, "seconds": seconds, "peak": peak}))


def main(arguments: list[str]) -> int:
    if arguments:
        child(*arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "source.parquet"
        make(file)
        found = {}
        for way in WAYS:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.data", way, str(file)]
            found[way] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    print(f"{machine()}\n\n### {PROBLEMS * COPIES:,} rows in the shape of DAPO-Math-17k\n")
    rows = []
    for way, result in found.items():
        ratio = result["seconds"] / found["pandas"]["seconds"]
        row = [f"{result['rows']:,}", f"{result['seconds']:.1f}", f"{ratio:.2f}", f"{result['peak'] / 2**20:,.0f}"]
        rows.append([way, *row])
    print(as_markdown(Table("costs", ["", "rows kept", "seconds", "ratio", "peak memory, MiB"], rows)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
