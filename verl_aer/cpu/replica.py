"""veRL's vLLM replica with a server that suits a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl.workers.rollout.replica import RolloutReplicaRegistry

if TYPE_CHECKING:
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMReplica


def register_vllm_replica() -> None:
    """Put our replica in the place of veRL's own, in the registry from which every vLLM rollout is built."""
    RolloutReplicaRegistry.register("vllm", _load_vllm_replica)


def _load_vllm_replica() -> type[vLLMReplica]:
    # vLLM takes seconds to import; the registry loads it only where a rollout is built.
    from verl_aer.cpu.server import CPUReplica

    return CPUReplica
