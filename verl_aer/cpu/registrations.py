"""Entries for the CPU in veRL's registries of engines and of rollout replicas, and what these engines need.

Each function is called when veRL's module with the registry has just been imported, hence the imports inside.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from verl_aer.cpu.errors import expect

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


def leave_memory_unpinned() -> None:
    """Symptom: ``RuntimeError: Cannot access accelerator device when none is available``.

    veRL gives the reference policy, whose parameters it keeps on the CPU in any case, the policy
    ``CPUOffloadPolicy(pin_memory=True)``. Pinning is for copies to an accelerator, and torch refuses it where
    there is none.
    """
    from verl.workers.engine.fsdp import transformer_impl

    expect(
        "offload_policy = CPUOffloadPolicy(pin_memory=True)" in inspect.getsource(transformer_impl.FSDPEngine),
        "veRL's FSDPEngine should offload with CPUOffloadPolicy(pin_memory=True).",
    )
    policy_class = transformer_impl.CPUOffloadPolicy
    transformer_impl.CPUOffloadPolicy = lambda pin_memory: policy_class(pin_memory=False)


def register_vllm_replica() -> None:
    """Put our replica, whose server suits a CPU, where every vLLM rollout is built from."""
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.register("vllm", _load_vllm_replica)


def _load_vllm_replica() -> type[vLLMReplica]:
    from verl_aer.cpu.server import CPUReplica

    return CPUReplica
