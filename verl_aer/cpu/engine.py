"""veRL's FSDP engines, registered for the device "cpu"."""

from __future__ import annotations

from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead


def register_fsdp2_engines() -> None:
    """Symptom: ``ValueError: No engine registered for device='cpu'``.

    veRL registers its FSDP engines for cuda and npu (``workers/engine/fsdp/transformer_impl.py``). Only
    ``fsdp2`` is registered here: version 1 passes ``sync_module_states=True``, which refuses parameters on a
    CPU.
    """
    register = EngineRegistry.register
    register(model_type="language_model", backend="fsdp2", device="cpu")(FSDPEngineWithLMHead)
    register(model_type="value_model", backend="fsdp2", device="cpu")(FSDPEngineWithValueHead)
