"""Entries for the CPU in veRL's registries of engines and of rollout replicas.

Each function is called when veRL's module with the registry has just been imported, hence the imports inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMReplica


def register_fsdp2_engines() -> None:
    """Symptom: ``ValueError: No engine registered for device='cpu'``.

    veRL registers its FSDP engines for cuda and npu (``workers/engine/fsdp/transformer_impl.py``). Only
    ``fsdp2`` is registered here: version 1 passes ``sync_module_states=True``, which refuses parameters on a
    CPU.
    """
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

    register = EngineRegistry.register
    register(model_type="language_model", backend="fsdp2", device="cpu")(FSDPEngineWithLMHead)
    register(model_type="value_model", backend="fsdp2", device="cpu")(FSDPEngineWithValueHead)


def register_vllm_replica() -> None:
    """Put our replica, whose server suits a CPU, where every vLLM rollout is built from."""
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.register("vllm", _load_vllm_replica)


def _load_vllm_replica() -> type[vLLMReplica]:
    from verl_aer.cpu.server import CPUReplica

    return CPUReplica
