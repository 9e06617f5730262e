"""Entries for the CPU in veRL's registries of engines and of rollout replicas, and what these engines need.

Each function is called when veRL's module with the registry has just been imported, hence the imports inside.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from verl_aer.cpu.errors import expect

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel
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


def load_value_models_with_their_own_attention() -> None:
    """Symptom: ``ImportError: FlashAttention2 has been toggled on``, for the critic alone.

    ``load_valuehead_model`` asks for flash-attention by name and overrules the attention of the config that it is
    given (for the policy the config decides). The engine imports the function again for each model.
    """
    from transformers import AutoModelForTokenClassification
    from verl.utils import model as verl_model

    expect(
        'attn_implementation="flash_attention_2"' in inspect.getsource(verl_model.load_valuehead_model),
        "verl.utils.model.load_valuehead_model should ask for flash_attention_2 by name.",
    )

    def load_valuehead_model(
        local_path: str, torch_dtype: torch.dtype, model_config: PretrainedConfig, trust_remote_code: bool
    ) -> PreTrainedModel:
        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
        )

    verl_model.load_valuehead_model = load_valuehead_model


def register_vllm_replica() -> None:
    """Put our replica, whose server suits a CPU, where every vLLM rollout is built from."""
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.register("vllm", _load_vllm_replica)


def _load_vllm_replica() -> type[vLLMReplica]:
    from verl_aer.cpu.server import CPUReplica

    return CPUReplica
