"""veRL's FSDP engine with another functional in the place of the entropy, where a batch asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name, get_vendor
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_aer.functional import Functional
from verl_aer.integration.functional_request import BACKENDS, mark_done, requested_functional

Entropy = Callable[..., torch.Tensor]
"""From logits ``(T, V)``, already divided by the temperature, to ``(T,)`` nats."""


class FunctionalEntropyEngine(FSDPEngineWithLMHead):
    """veRL's FSDP engine; its ``model_output["entropy"]`` is the functional that the batch asks for, if it does."""

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        wanted = tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False)
        functional = requested_functional(micro_batch) if wanted else None
        if functional is None:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        entropy = self._over_real_tokens(functional)
        mark_done(micro_batch)
        if tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True):
            with self._in_place_of_the_entropy(entropy):
                return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        # The padded path calls veRL's entropy by its module, not by an attribute of the engine.
        tu.assign_non_tensor(micro_batch, calculate_entropy=False)
        model_output = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        tu.assign_non_tensor(micro_batch, calculate_entropy=True)
        model_output["entropy"] = self._padded_entropy(entropy, output.logits, output_args["temperature"], micro_batch)
        return model_output

    def _over_real_tokens(self, functional: Functional) -> Entropy:
        """The functional without the padded columns of the vocabulary, which no tokenizer produces."""
        vocabulary = self._real_vocabulary

        def entropy(logits: torch.Tensor, chunk_size: int | None = None) -> torch.Tensor:
            chunks = logits[..., :vocabulary].split(chunk_size or max(len(logits), 1))
            return torch.cat([functional.entropy(chunk) for chunk in chunks])

        return entropy

    @cached_property
    def _real_vocabulary(self) -> int | None:
        """Columns of the logits up to the tokenizer's last token; None, which means all, without a tokenizer."""
        tokenizer = self.model_config.tokenizer
        return None if tokenizer is None else max(tokenizer.get_vocab().values()) + 1

    @contextmanager
    def _in_place_of_the_entropy(self, entropy: Entropy) -> Iterator[None]:
        """For the packed path, whose gather over sequence-parallel ranks and gradient of the log-probs stay veRL's."""
        verls = self.compute_entropy_from_logits
        self.compute_entropy_from_logits = entropy
        try:
            yield
        finally:
            self.compute_entropy_from_logits = verls

    def _padded_entropy(
        self, entropy: Entropy, logits: torch.Tensor, temperature: torch.Tensor, micro_batch: TensorDict
    ) -> torch.Tensor:
        """Of ``(N, S, V)`` logits and ``(N,)`` temperatures, jagged ``(N, s_i)``."""
        if isinstance(logits, DTensor):
            logits = logits.full_tensor()
        offsets = micro_batch["input_ids"].offsets()
        lengths = offsets.diff()
        real = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
        packed = logits[real] / temperature.clamp(min=1e-8).repeat_interleave(lengths)[:, None].to(logits.dtype)
        if self.engine_config.entropy_checkpointing:
            nats = torch.utils.checkpoint.checkpoint(entropy, packed, use_reentrant=False)
        else:
            nats = entropy(packed)
        return torch.nested.nested_tensor_from_jagged(nats, offsets)


def register_functional_engines() -> None:
    """Put our engine before veRL's own: it is looked up by device and vendor first, then by the device alone.

    Another vendor's engine stays: it may not be FSDP's.
    """
    register = EngineRegistry.register
    device, vendor = get_device_name(), get_vendor()
    for backend in BACKENDS:
        if _engine_of(backend) is FSDPEngineWithLMHead:
            register("language_model", backend, device, vendor)(FunctionalEntropyEngine)


def _engine_of(backend: str) -> type | None:
    try:
        return EngineRegistry.get_engine_cls("language_model", backend)
    except (ValueError, AssertionError):
        # Not on this device, or not at all.
        return None
