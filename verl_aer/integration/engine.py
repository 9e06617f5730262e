"""veRL's FSDP engine with log-probs and entropy, or another measure, in one pass over the logits."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_aer.integration.loss import rows_with_entropy_term
from verl_aer.integration.measure_request import mark_measure_applied, requested_measure
from verl_aer.kernels import MEASURES, logprob_and_entropy, recomputed_entropy
from verl_aer.parts.measure import Full, Measure


class Rows(NamedTuple):
    """logits: ``(T, V)``. labels: ``(T,)``, the next tokens. temperature: ``(T,)``."""

    logits: torch.Tensor
    labels: torch.Tensor
    temperature: torch.Tensor


DEVICES = ("cpu", "cuda")
"""Devices that our kernels support. On other devices veRL's engine stays."""

HANDLED_SWITCHES = frozenset({"calculate_entropy", "use_remove_padding"})
"""Batch switches that change the outputs of the model and that this engine handles."""


class EntropyEngine(FSDPEngineWithLMHead):
    """veRL's FSDP engine with log-probs and entropy in one pass over the logits.

    ``model_output["entropy"]`` is the measure that the batch requests, by default the entropy of the whole vocabulary.
    It is computed only for the tokens whose entropy is used: response tokens, in an update only those of rows with an
    entropy term. All other tokens get 0.

    Batches in another layout than that of veRL's v1 trainers, and batches that request other outputs, take veRL's path.
    """

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        if not (_is_of_v1_trainer(micro_batch) and _has_logits_to_itself(micro_batch)):
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        packed = tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True)
        rows = self._packed(output, output_args) if packed else self._padded(output, output_args, micro_batch)
        wanted = tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False)
        measure = requested_measure(micro_batch) or Full()
        counted = self._counted_tokens(micro_batch, len(rows.logits)) if wanted else torch.zeros_like(rows.temperature)
        log_probs, entropy = self._log_probs_and_entropy(rows, measure, counted)
        pad_size = output_args["pad_size"] if packed else 0

        def nested(tokens: torch.Tensor) -> torch.Tensor:
            tokens = self._gather_and_unpad_packed(tokens, pad_size) if packed else tokens
            return torch.nested.nested_tensor_from_jagged(tokens, micro_batch["input_ids"].offsets())

        if not wanted:
            return {"log_probs": nested(log_probs)}
        mark_measure_applied(micro_batch)
        return {"log_probs": nested(log_probs), "entropy": nested(entropy)}

    def _packed(self, output: Any, output_args: dict[str, Any]) -> Rows:
        logits = _whole(output.logits).squeeze(0)
        return Rows(logits, output_args["input_ids_rmpad_rolled"], output_args["temperature_rmpad"])

    def _padded(self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict) -> Rows:
        """Select the real tokens of ``(N, S, V)`` logits and ``(N,)`` temperatures."""
        logits = _whole(output.logits)
        lengths = micro_batch["input_ids"].offsets().diff()
        real = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
        temperature = output_args["temperature"].repeat_interleave(lengths)
        return Rows(logits[real], output_args["input_ids_rmpad_rolled"], temperature)

    def _counted_tokens(self, micro_batch: TensorDict, tokens: int) -> torch.Tensor | None:
        """Return ``(T,)``, nonzero for the tokens whose entropy is used.

        None means all tokens. It is returned with sequence parallelism, whose ranks share a row.
        """
        if self.use_ulysses_sp:
            return None
        lengths = micro_batch["input_ids"].offsets().diff()
        prompts, responses = (micro_batch[name].offsets().diff() for name in ("prompts", "responses"))
        begins = micro_batch["input_ids"].offsets()[:-1].repeat_interleave(lengths)
        place = torch.arange(len(begins), device=begins.device) - begins
        # The distribution of a token is at the position of the previous token.
        first, end = prompts - 1, prompts + responses - 1
        counted = (place >= first.repeat_interleave(lengths)) & (place < end.repeat_interleave(lengths))
        counted &= rows_with_entropy_term(micro_batch).repeat_interleave(lengths)
        return torch.nn.functional.pad(counted.float(), (0, tokens - len(counted)))

    def _log_probs_and_entropy(
        self, rows: Rows, measure: Measure, counted: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        temperature = rows.temperature.clamp(min=1e-8)
        if type(measure) in MEASURES:
            # The logits are not read again, so the gradient may overwrite them.
            return logprob_and_entropy(
                rows.logits, rows.labels, temperature, measure, counted, self._columns(measure), inplace=True
            )
        # User-defined measures are functions of the logits.
        entropy = recomputed_entropy(measure, rows.logits, temperature, counted, self._columns(measure))
        # The backward of the entropy reads the logits again.
        log_probs, _ = logprob_and_entropy(
            rows.logits,
            rows.labels,
            temperature,
            row_weight=torch.zeros_like(temperature),
            inplace=not entropy.requires_grad,
        )
        return log_probs, entropy

    def _columns(self, measure: Measure) -> int | None:
        """Return the columns of a measure; None for the full entropy, which veRL computes over padded columns too."""
        return None if isinstance(measure, Full) else self._real_vocabulary

    @cached_property
    def _real_vocabulary(self) -> int | None:
        """Count the logits' columns up to the last token of the tokenizer; None, for all, without a tokenizer."""
        tokenizer = self.model_config.tokenizer
        return None if tokenizer is None else max(tokenizer.get_vocab().values()) + 1


def _is_of_v1_trainer(micro_batch: TensorDict) -> bool:
    """Check that input ids, prompts and responses are nested columns; veRL's older trainers send other layouts."""
    columns = [micro_batch.get(name, None) for name in ("input_ids", "prompts", "responses")]
    return all(isinstance(column, torch.Tensor) and column.is_nested for column in columns)


def _has_logits_to_itself(micro_batch: TensorDict) -> bool:
    """Check that the batch requests no other output of the logits."""
    return not any(tu.get_non_tensor_data(micro_batch, name, False) is True for name in _other_switches())


@cache
def _other_switches() -> frozenset[str]:
    """List the names that veRL's own method looks up in a batch, except the switches that this engine handles.

    They come from the installed veRL, so that an output that a later version adds is left to veRL.
    """
    constants = FSDPEngineWithLMHead.prepare_model_outputs.__code__.co_consts
    return frozenset(name for name in constants if isinstance(name, str) and name.isidentifier()) - HANDLED_SWITCHES


def _whole(logits: torch.Tensor | DTensor) -> torch.Tensor:
    return logits.full_tensor() if isinstance(logits, DTensor) else logits


def install_entropy_engines(worker: Any) -> None:
    """Turn the FSDP engines of a worker's actor and reference policy into ours. Runs inside the Ray actor.

    It changes only the engines that veRL has built. veRL's class and registry stay the same, and so do engines of other
    classes, such as Megatron's or user-defined ones.

    worker: veRL's worker, which may hold several roles.
    """
    roles = getattr(worker, "worker_dict", {"": worker}).values()
    policies = [getattr(role, policy, None) for role in roles for policy in ("actor", "ref")]
    for engine in [getattr(policy, "engine", None) for policy in policies]:
        if type(engine) is FSDPEngineWithLMHead and get_device_name() in DEVICES:
            # veRL offers no other way to choose the engine's class for one run. Our class adds methods and no state.
            engine.__class__ = EntropyEngine
