"""The entropy control in veRL's own training worker and FSDP engines: however a batch is cut, the result is one.

Ranks, micro-batches, dynamic batching, the order of the rows, FSDP 1 and 2, LoRA: entropies, the entropy term, its
metrics and the gradient of the update are those of the whole batch on one rank.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from examples.countdown.model import build_model, build_tokenizer, save
from tests.integration.engine_rank import ALPHA, CASES, LENGTHS, VOCABULARY, WEIGHTS
from verl_aer.integration.loss import UPDATE_ENTROPY_NATS, UPDATE_TOKENS

RELATIVE = 1e-5
"""Float32, added up in another order."""


def start_rank(ranks: int, rank: int, port: int, model: Path, out: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.integration.engine_rank", str(model), str(out)]
    with (out / f"{ranks}-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Case -> what each of its ranks found."""
    out = tmp_path_factory.mktemp("engines")
    tokenizer = build_tokenizer()
    assert len(tokenizer) == VOCABULARY
    save(build_model(tokenizer, seed=0), tokenizer, out / "model")
    results: dict[str, list[dict]] = {}
    for ranks in sorted({case.ranks for case in CASES.values()}):
        port = free_port()
        running = [start_rank(ranks, rank, port, out / "model", out) for rank in range(ranks)]
        try:
            for rank, process in enumerate(running):
                assert process.wait(300) == 0, (out / f"{ranks}-{rank}.log").read_text()[-3000:]
        finally:
            for process in running:
                process.kill()
                process.wait()
        for rank in range(ranks):
            for name, result in torch.load(out / f"{ranks}-{rank}.pt", weights_only=False).items():
                results.setdefault(name, []).append(result)
    return results


def entropy_of_rows(ranks: list[dict]) -> dict[int, torch.Tensor]:
    return {row: entropy for rank in ranks for row, entropy in rank["entropy"].items()}


def reduced(value: object) -> float:
    """A metric as the trainer reduces it over the mini-batches of a step; here there is one."""
    (number,) = value if isinstance(value, list) else [value]
    return float(number)


OTHERS = sorted(name for name in CASES if name not in ("whole", "LoRA"))


def reference(name: str) -> str:
    return "LoRA" if CASES[name].lora_rank else "whole"


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.guards("bug 7")
def test_entropies_of_the_old_log_prob_pass_do_not_depend_on_the_cut(found, name):
    rows, expected = entropy_of_rows(found[name]), entropy_of_rows(found[reference(name)])
    assert sorted(rows) == sorted(expected) == list(range(len(LENGTHS)))
    for row in rows:
        torch.testing.assert_close(rows[row], expected[row], rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.guards("bug 7")
def test_metrics_of_the_update_do_not_depend_on_the_cut(found, name):
    expected = found[reference(name)][0]["metrics"]
    ours = [metric for metric in expected if metric.startswith("actor/aer/")]
    assert len(ours) == 6
    for metrics in (rank["metrics"] for rank in found[name]):
        for metric in ours:
            assert reduced(metrics[metric]) == pytest.approx(reduced(expected[metric]), rel=RELATIVE), metric


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.guards("bug 7")
def test_gradients_do_not_depend_on_the_cut(found, name):
    expected = found[reference(name)][0]["gradient"]
    scale = max(gradient.abs().max() for gradient in expected.values())
    gradients = found[name][0]["gradient"]
    assert gradients.keys() == expected.keys()
    for parameter, gradient in gradients.items():
        assert (gradient - expected[parameter]).abs().max() <= RELATIVE * scale, parameter


def test_what_is_compared_is_the_entropy_control(found):
    whole = found["whole"][0]
    entropy = entropy_of_rows(found["whole"])
    tokens = sum(response for _, response in LENGTHS)
    # Response token t was drawn from the distribution at the token before it.
    nats = {row: entropy[row][prompt - 1 : -1].sum().item() for row, (prompt, _) in enumerate(LENGTHS)}
    metrics = {name: reduced(value) for name, value in whole["metrics"].items() if name.startswith("actor/aer/")}
    assert metrics[UPDATE_TOKENS] == tokens
    assert metrics[UPDATE_ENTROPY_NATS] == pytest.approx(sum(nats.values()), rel=RELATIVE)
    weighted = sum(WEIGHTS[row] * nats[row] for row in nats)
    assert metrics["actor/aer/entropy_term"] == pytest.approx(ALPHA * weighted / tokens, rel=RELATIVE)
    # LoRA trains its adapters and nothing else.
    moved = {name for name, gradient in found["LoRA"][0]["gradient"].items() if gradient.any()}
    assert moved
    assert all("lora_" in name for name in moved)
