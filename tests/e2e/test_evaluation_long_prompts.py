"""`verl-aer evaluate` on a CPU with prompts that do not fit one step of vLLM."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from examples.countdown.prepare import write_parquet

pytestmark = pytest.mark.e2e

PROBLEMS, ANSWERS = 20, 8


def test_a_batch_of_more_tokens_than_a_step_of_vllm_is_sampled(inputs, reward, tmp_path):
    rows = pq.read_table(inputs.data / "test.parquet").to_pylist()[:PROBLEMS]
    for row in rows:
        # 100 tokens and more: vLLM's step takes 4,096, in the middle of a prompt.
        row["prompt"][0]["content"] = row["prompt"][0]["content"].rjust(101, "1")
    write_parquet(rows, tmp_path / "long.parquet")
    command = [sys.executable, "-m", "verl_aer.cli", "evaluate", str(inputs.model), "--out", str(tmp_path / "out")]
    command += ["--data", str(tmp_path / "long.parquet"), "--n", str(ANSWERS), "--max-tokens", "4"]
    done = subprocess.run(
        [*command, "--reward", f"{inputs.data / 'reward.py'}:compute_score"], timeout=300, check=False
    )
    assert done.returncode == 0
    lines = (tmp_path / "out" / "samples" / "00000.jsonl").read_text().splitlines()
    assert len({(json.loads(line)["problem"], json.loads(line)["sample"]) for line in lines}) == PROBLEMS * ANSWERS
