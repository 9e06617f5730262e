"""veRL's extension of the vLLM worker, adapted to load weights more than once on a CPU."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

from verl_aer.cpu.errors import expect


def keep_linear_weights() -> None:
    """Keep the original weights of linear layers.

    Symptom: ``'Parameter' object has no attribute 'weight_loader'`` at the second weight update.

    On a CPU vLLM repacks the weight of every linear layer after loading and discards the original together with its
    loader (``UnquantizedLinearMethod.process_weights_after_loading``). It skips layers with ``skip_weight_relayout``,
    which is set on all layers here.
    """
    expect(
        "skip_weight_relayout" in inspect.getsource(UnquantizedLinearMethod.process_weights_after_loading),
        "vLLM's UnquantizedLinearMethod should skip layers with skip_weight_relayout.",
    )
    LinearBase.skip_weight_relayout = True


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """veRL's worker extension with two changes of the weight update for a CPU."""

    def __new__(cls, **kwargs: Any) -> CPUWorkerExtension:
        keep_linear_weights()
        return super().__new__(cls, **kwargs)

    def update_weights_from_ipc(self, *args: Any, **kwargs: Any) -> None:
        """Raise the cause of a failed update.

        Symptom: ``BufferError: cannot close exported pointers exist`` instead of the cause. veRL's receiver closes the
        shared memory in its ``finally``, while the failed loading still holds views of it.
        """
        try:
            super().update_weights_from_ipc(*args, **kwargs)
        except BufferError as error:
            raise error.__context__ or error from None

    def _update_weights(
        self, weights: list[tuple[str, torch.Tensor]], peft_config: dict | None, base_sync_done: bool
    ) -> None:
        """Load copies of the weights.

        Symptom: ``BufferError: cannot close exported pointers exist``, or weights that change later. On an accelerator
        ``tensor.to(device)`` in veRL's bucket receiver copies out of the shared memory. On a CPU it returns the view.
        """
        copies = [(name, weight.clone()) for name, weight in weights]
        super()._update_weights(copies, peft_config, base_sync_done)
