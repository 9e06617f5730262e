"""Send weights over gloo to rollout servers that do not share the actor's processes.

veRL 0.9.1 has checkpoint engines for nccl, hccl, nixl, mooncake and kimi. The trainer mode ``separate_async`` needs one
of them, but each needs an accelerator or its libraries. This engine needs neither. Rank 0 of the actor broadcasts the
weights in buckets to every rollout worker, on this host or another.

veRL imports this module by the key ``actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module``.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import ray
import torch
from torch.distributed import ProcessGroupGloo, TCPStore
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

TIMEOUT = timedelta(minutes=10)
"""Time limit of one broadcast. By default the update's ``actor_rollout_ref.nccl_timeout`` is reached first."""

SENDER = 0
NOT_IN_GROUP = -1
"""Rank of the actor's other workers, which help to gather the weights but do not send them."""


class Endpoint(NamedTuple):
    """Address of the sender's store."""

    host: str
    port: int


class Bucket(NamedTuple):
    """Weights of one message: names with shapes and types, and the concatenated bytes."""

    layout: list[tuple[str, torch.Size, torch.dtype]]
    data: torch.Tensor


def pack(weights: Iterable[tuple[str, torch.Tensor]], bucket_size: int) -> Iterator[Bucket]:
    """Pack weights into buckets of at most ``bucket_size`` bytes. A larger weight gets a bucket for itself."""
    layout: list[tuple[str, torch.Size, torch.dtype]] = []
    parts: list[torch.Tensor] = []
    size = 0
    for name, weight in weights:
        part = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        if parts and size + part.numel() > bucket_size:
            yield Bucket(layout, torch.cat(parts))
            layout, parts, size = [], [], 0
        layout.append((name, weight.shape, weight.dtype))
        parts.append(part)
        size += part.numel()
    if parts:
        yield Bucket(layout, torch.cat(parts))


def unpack(bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
    """Unpack the weights of a bucket. Each gets separate memory, because a view may be misaligned for its type."""
    start = 0
    for name, shape, dtype in bucket.layout:
        stop = start + shape.numel() * dtype.itemsize
        yield name, bucket.data[start:stop].clone().view(dtype).reshape(shape)
        start = stop


@CheckpointEngineRegistry.register("gloo")
class GlooCheckpointEngine(CheckpointEngine):
    """Broadcast from the actor's rank 0 to every rollout worker, in a new process group for each update.

    Args:
        bucket_size: bytes per message.
        is_master: True on the actor's rank 0.
    """

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.bucket_size = bucket_size
        self.is_master = is_master
        self._store: TCPStore | None = None
        self._group: ProcessGroupGloo | None = None

    def prepare(self) -> Endpoint | None:
        """Start to listen on a free port, on the sender only."""
        if not self.is_master:
            return None
        host = ray.util.get_node_ip_address().strip("[]")
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        return Endpoint(host, self._store.port)

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Endpoint | None]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Put the actor's rank 0 and all rollout workers into one group."""
        world_size = 1 + rollout_world_size
        actor_ranks = [SENDER] + [NOT_IN_GROUP] * (actor_wg_world_size - 1)
        return (
            cls._arguments(actor_ranks, world_size, metadata[0]),
            cls._arguments(list(range(1, world_size)), world_size, metadata[0]),
        )

    @staticmethod
    def _arguments(ranks: list[int], world_size: int, endpoint: Endpoint | None) -> dict[str, list[Any]]:
        return {"rank": ranks, "world_size": [world_size] * len(ranks), "endpoint": [endpoint] * len(ranks)}

    def init_process_group(self, rank: int, world_size: int, endpoint: Endpoint) -> None:
        if rank == NOT_IN_GROUP:
            return
        if self._store is None:
            self._store = TCPStore(endpoint.host, endpoint.port, is_master=False, timeout=TIMEOUT)
        self._group = ProcessGroupGloo(self._store, rank, world_size, TIMEOUT)

    def finalize(self) -> None:
        self._group = self._store = None

    async def send_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> dict[str, Any]:
        """Broadcast all weights. veRL expects metrics of the update, of which there are none."""
        if self._group is None:
            # Each weight is gathered from all of the actor's ranks, so each rank must iterate over the weights.
            for _ in weights:
                pass
            return {}
        for bucket in pack(weights, self.bucket_size):
            await asyncio.to_thread(self._send, bucket)
        await asyncio.to_thread(self._send, None)
        return {}

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Yield names and weights in the order of sending."""
        while (bucket := await asyncio.to_thread(self._receive)) is not None:
            for name, weight in unpack(bucket):
                yield name, weight

    def _send(self, bucket: Bucket | None) -> None:
        """Send one message: the sizes of layout and data, then both. A size of 0 ends the update."""
        layout = torch.frombuffer(bytearray(pickle.dumps(bucket.layout)), dtype=torch.uint8) if bucket else None
        self._broadcast(torch.tensor([layout.numel(), bucket.data.numel()] if bucket else [0, 0]))
        if bucket:
            self._broadcast(layout)
            self._broadcast(bucket.data)

    def _receive(self) -> Bucket | None:
        layout_size, data_size = self._broadcast(torch.zeros(2, dtype=torch.int64)).tolist()
        if layout_size == 0:
            return None
        layout = self._broadcast(torch.empty(layout_size, dtype=torch.uint8))
        data = self._broadcast(torch.empty(data_size, dtype=torch.uint8))
        return Bucket(pickle.loads(layout.numpy().tobytes()), data)

    def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        self._group.broadcast(tensor, SENDER).wait()
        return tensor
