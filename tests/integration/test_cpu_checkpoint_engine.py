"""Weights over gloo arrive bit for bit, for any bucket size."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer.cpu import checkpoint_engine as module
from verl_aer.cpu.checkpoint_engine import GlooCheckpointEngine, pack, unpack

WEIGHTS = [
    ("embedding", torch.arange(24, dtype=torch.float32).reshape(4, 6)),
    ("odd", torch.tensor([True, False, True])),
    ("half", torch.linspace(-1, 1, 7, dtype=torch.bfloat16)),
    ("transposed", torch.arange(6, dtype=torch.float64).reshape(2, 3).T),
    ("scalar", torch.tensor(3.5)),
]


def assert_same(received: list[tuple[str, torch.Tensor]]) -> None:
    assert [name for name, _ in received] == [name for name, _ in WEIGHTS]
    for (name, got), (_, sent) in zip(received, WEIGHTS, strict=True):
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape), name
        assert torch.equal(got, sent), name


@pytest.mark.parametrize("bucket_size", [1, 100, 1 << 20])
def test_packed_weights_unpack_to_themselves(bucket_size):
    buckets = list(pack(WEIGHTS, bucket_size))
    assert all(b.data.numel() <= bucket_size or len(b.layout) == 1 for b in buckets)
    assert_same([pair for bucket in buckets for pair in unpack(bucket)])


@pytest.mark.parametrize("bucket_size", [64, 1 << 20])
def test_every_rollout_worker_gets_the_weights_twice(monkeypatch, bucket_size):
    monkeypatch.setattr(module.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    actors = [GlooCheckpointEngine(bucket_size, is_master=rank == 0) for rank in range(2)]
    rollouts = [GlooCheckpointEngine(bucket_size) for _ in range(2)]
    for _ in range(2):
        received = update(actors, rollouts)
        assert len(received) == 2
        for weights in received:
            assert_same(weights)


def update(actors: list[GlooCheckpointEngine], rollouts: list[GlooCheckpointEngine]) -> list[list]:
    """What ``CheckpointEngineManager`` does, with a thread instead of each process."""
    engines = [*actors, *rollouts]
    metadata = [engine.prepare() for engine in engines]
    actor_arguments, rollout_arguments = GlooCheckpointEngine.build_topology(len(actors), len(rollouts), metadata)
    arguments = {name: [*actor_arguments[name], *rollout_arguments[name]] for name in actor_arguments}
    with ThreadPoolExecutor(len(engines)) as pool:
        list(pool.map(GlooCheckpointEngine.init_process_group, engines, *arguments.values()))
        sent = [pool.submit(lambda engine=engine: asyncio.run(engine.send_weights(iter(WEIGHTS)))) for engine in actors]
        received = list(pool.map(lambda engine: asyncio.run(collect(engine)), rollouts))
        assert [future.result() for future in sent] == [{}, {}]
    for engine in engines:
        engine.finalize()
    return received


async def collect(engine: GlooCheckpointEngine) -> list[tuple[str, torch.Tensor]]:
    return [pair async for pair in engine.receive_weights()]
