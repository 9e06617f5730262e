"""Register the CPU in veRL's registries of engines and rollout replicas, and adapt the engines to it.

Each function is called right after the import of veRL's module with the registry, so it imports that module inside.
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
    """Register veRL's FSDP2 engines for the CPU.

    Symptom: ``ValueError: No engine registered for device='cpu'``.

    veRL registers its FSDP engines for cuda and npu (``workers/engine/fsdp/transformer_impl.py``). Version 1 is not
    registered here, because it passes ``sync_module_states=True``, which rejects parameters on a CPU.
    """
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

    register = EngineRegistry.register
    register(model_type="language_model", backend="fsdp2", device="cpu")(FSDPEngineWithLMHead)
    register(model_type="value_model", backend="fsdp2", device="cpu")(FSDPEngineWithValueHead)


def leave_memory_unpinned() -> None:
    """Switch off pinned memory for offloaded parameters.

    Symptom: ``RuntimeError: Cannot access accelerator device when none is available``.

    veRL always keeps the parameters of the reference policy on the CPU, with ``CPUOffloadPolicy(pin_memory=True)``.
    Pinning serves copies to an accelerator, and torch rejects it without one.
    """
    from verl.workers.engine.fsdp import transformer_impl

    expect(
        "offload_policy = CPUOffloadPolicy(pin_memory=True)" in inspect.getsource(transformer_impl.FSDPEngine),
        "veRL's FSDPEngine should offload with CPUOffloadPolicy(pin_memory=True).",
    )
    policy_class = transformer_impl.CPUOffloadPolicy
    transformer_impl.CPUOffloadPolicy = lambda pin_memory: policy_class(pin_memory=False)


def load_value_models_with_their_own_attention() -> None:
    """Load value models with the attention of their config.

    Symptom: ``ImportError: FlashAttention2 has been toggled on``, for the critic only.

    ``load_valuehead_model`` requires flash-attention by name and overrides the attention of its config argument (for
    the policy the config decides). The engine imports the function again for each model.
    """
    from transformers import AutoModelForTokenClassification
    from verl.utils import model as verl_model

    expect(
        'attn_implementation="flash_attention_2"' in inspect.getsource(verl_model.load_valuehead_model),
        "verl.utils.model.load_valuehead_model should request flash_attention_2 by name.",
    )

    def load_valuehead_model(
        local_path: str, torch_dtype: torch.dtype, model_config: PretrainedConfig, trust_remote_code: bool
    ) -> PreTrainedModel:
        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
        )

    verl_model.load_valuehead_model = load_valuehead_model


def register_vllm_replica() -> None:
    """Replace veRL's vLLM replica by ours, whose server works on a CPU."""
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.register("vllm", _load_vllm_replica)


def _load_vllm_replica() -> type[vLLMReplica]:
    from verl_aer.cpu.server import CPUReplica

    return CPUReplica
