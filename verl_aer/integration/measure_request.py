"""Request a measure other than the entropy of the whole vocabulary from the workers.

The batch names the measure, so that the same worker serves every method. Each pass computes one: the pass without a
gradient computes the measured entropy, the update computes the pushed one. Bypass mode has only the update, which then
measures too.
"""

from __future__ import annotations

import json

from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_aer.config.schema import EntropyConfig
from verl_aer.control.step import EntropySource
from verl_aer.parts.base import get_part
from verl_aer.parts.controller import Fixed
from verl_aer.parts.measure import Measure

MEASURE_KEY = "entropy_measure"
"""Batch-level text: the measure and its settings."""

DONE_KEY = "entropy_measure_done"
"""Batch-level flag: the engine has computed the requested measure."""

BACKENDS = ("fsdp", "fsdp2")
"""Values of ``actor.strategy`` whose engine computes measures of the logits."""


def encode_measure(measure: Measure) -> str | None:
    """Encode a measure for a batch; None if veRL's engine computes it.

    >>> from verl_aer.parts.measure import Clamped, Full
    >>> encode_measure(Clamped(p=0.3)), encode_measure(Full())
    ('{"kind": "clamped", "p": 0.3}', None)
    """
    if measure.kind == "full" or measure.from_log_probs:
        return None
    return json.dumps(measure.to_mapping())


def measured_in_update(entropy: EntropyConfig, source: EntropySource) -> Measure:
    """Return the measure whose mean the update reports: in bypass mode the controlled one, else the pushed one."""
    return entropy.measure if source is EntropySource.UPDATE else entropy.pushed_measure


def requested_in_update(entropy: EntropyConfig, source: EntropySource) -> Measure:
    """Return the measure that the update computes: the pushed one if it needs logits, else the measured one."""
    pushed = entropy.pushed_measure
    return measured_in_update(entropy, source) if pushed.from_log_probs else pushed


def push_warnings(config: DictConfig, entropy: EntropyConfig) -> list[str]:
    """Warn if the bonus would only add noise: -log π of the sampled token, pushed on-policy."""
    batch, actor = config.data.train_batch_size, config.actor_rollout_ref.actor
    is_on_policy = batch <= actor.ppo_mini_batch_size and actor.ppo_epochs == 1
    has_a_bonus = entropy.regularizer.kind == "bonus" and entropy.controller != Fixed(coefficient=0.0)
    if not (entropy.pushed_measure.from_log_probs and has_a_bonus and is_on_policy):
        return []
    return [
        f"entropy.pushed: the loss pushes {entropy.pushed_measure.kind!r}, and a step is one mini-batch and one "
        f"epoch (data.train_batch_size={batch}, ppo_mini_batch_size={actor.ppo_mini_batch_size}, ppo_epochs=1): "
        "on-policy its expected gradient is zero, and the bonus only adds noise. Set entropy/pushed=full, or a "
        "smaller ppo_mini_batch_size."
    ]


def requested_measure(data: TensorDict) -> Measure | None:
    """Return the measure that the batch requests instead of the entropy, or None."""
    request = tu.get_non_tensor_data(data=data, key=MEASURE_KEY, default=None)
    if request is None:
        return None
    settings = json.loads(request)
    return get_part("measure", settings.pop("kind"))(**settings)


def mark_measure_applied(data: TensorDict) -> None:
    """Mark the entropy of this micro-batch as the requested measure."""
    tu.assign_non_tensor(data, **{DONE_KEY: True})


def require_measure_applied(data: TensorDict) -> None:
    """Raise RuntimeError if the engine returned the entropy of the whole vocabulary, not the requested measure."""
    request = tu.get_non_tensor_data(data=data, key=MEASURE_KEY, default=None)
    if request is not None and not tu.get_non_tensor_data(data=data, key=DONE_KEY, default=False):
        raise RuntimeError(
            f"the training engine ignored the measure {request}: it is not this package's extension of veRL's FSDP "
            "engine. Set entropy/measure=full and entropy/pushed=same, or "
            "actor_rollout_ref.actor.strategy to fsdp or fsdp2."
        )
