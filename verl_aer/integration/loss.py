"""The actor's loss: veRL's policy loss and one entropy term.

    L = L_ppo − α · agg(w · s · value(H))

with α the global coefficient of this step (one number, broadcast by the driver), w the weight of each trajectory (one
number per row, computed by the driver), H the entropy of each response token (nats, at the sampling temperature), s the
weight of each token by the token_selection, and value the function of the regularizer. For most methods s is 1 and
value(H) is H. The worker decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from verl_aer.integration.batch import WEIGHT_FIELD
from verl_aer.integration.measure_request import require_measure_applied
from verl_aer.parts.regularizer import Bonus, Regularizer
from verl_aer.parts.token_selection import All, TokenSelection

ALPHA_KEY = "entropy_alpha"
"""Batch-level number that carries α from the driver to every worker."""

SIGNAL_KEY = "entropy_signal"
"""Batch-level JSON: the numbers that the driver's part of the regularizer sends to its part on the workers."""

WEIGHTED_ROWS_KEY = "entropy_of_weighted_rows"
"""Batch-level flag: the entropy of rows with coefficient 0 is not used and need not be computed."""

ALL, BONUS = All(), Bonus()
"""Defaults: every token counts, and its entropy enters the loss unchanged."""

# Numerator and denominator of the token mean of the entropy during the update. The driver divides them.
UPDATE_ENTROPY_NATS = "actor/aer/update_entropy_nats"
UPDATE_TOKENS = "actor/aer/update_tokens"


def entropy_loss(
    config: ActorConfig,
    aggregation: str,
    model_output: dict[str, torch.Tensor],
    data: TensorDict,
    dp_group: Any = None,
    *,
    from_log_probs: bool = False,
    measured_from_log_probs: bool | None = None,
    token_selection: TokenSelection = ALL,
    regularizer: Regularizer = BONUS,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Compute L = L_ppo − α · agg(w · s · value(H)) as one of veRL's loss functions.

    Args:
        config: the actor's config; its ``entropy_coeff`` must be 0.
        aggregation: ``token-mean`` divides Σ w·H by the response tokens of the global mini-batch, independently of the
            policy loss, so that α always has the same meaning. ``seq-mean-token-mean`` is veRL's mode of that name.
            ``same_as_policy_loss`` uses ``config.loss_agg_mode``, as veRL's own entropy term does.
        model_output: ``log_probs`` and ``entropy`` of this micro-batch, as the engine returns them.
        data: the micro-batch, with ``entropy_weight`` ``(N,)`` and the number ``entropy_alpha``.
        dp_group: data-parallel group, unused: veRL's ``agg_loss`` normalizes by global counts.
        from_log_probs: H is −log π of the sampled token instead of the entropy of its distribution.
        measured_from_log_probs: the same for the logged entropy; None logs the entropy that is pushed.
        token_selection: which tokens count; s has no gradient.
        regularizer: how the entropy of a token enters the loss.

    Returns:
        The loss (scalar, with gradient) and metrics, each a sum over micro-batches.

    Raises:
        KeyError: the entropy, the weights or α are missing; missing values are never replaced by zero.
        RuntimeError: the engine ignored the measure that the batch requests.
    """
    alpha = _required_alpha(data)
    weight = _required_weight(data)
    policy_loss, metrics = ppo_loss(
        config=config, model_output=_for_verl(model_output, data), data=data, dp_group=dp_group
    )

    entropy = _token_entropy(model_output, data, from_log_probs)  # (N, T)
    mask = data.select("response_mask").to_padded_tensor()["response_mask"].to(bool)  # (N, T)
    mode = config.loss_agg_mode if aggregation == "same_as_policy_loss" else aggregation
    token_weight = token_selection.weights(entropy.detach(), mask)  # s
    signal = _signal(data)
    # ppo_loss has just set global_batch_info: the global counts that normalize the policy loss.
    normalizer = config.global_batch_info
    measured = token_weight * entropy.detach()
    if measured_from_log_probs not in (None, from_log_probs):
        # The measured entropy selects its own tokens, as in the pass before the update.
        other = _token_entropy(model_output, data, measured_from_log_probs).detach()
        measured = token_selection.weights(other, mask) * other
    term = agg_loss(weight * token_weight * regularizer.value(entropy, signal), mask, mode, **normalizer)

    slope = regularizer.slope(entropy.detach(), signal).abs()
    values = {
        "actor/aer/policy_loss": policy_loss.detach(),
        "actor/aer/entropy_term": alpha * term.detach(),
        "actor/aer/policy_gradient": _gradient_size(policy_loss, model_output["log_probs"]),
        "actor/aer/entropy_gradient": abs(alpha) * agg_loss(weight * token_weight * slope, mask, mode, **normalizer),
        **_update_entropy(measured, mask & rows_with_entropy_term(data)[:, None], config),
    }
    # Copy all values from the device at once: Metric would copy them one by one.
    numbers = torch.stack([value.double() for value in values.values()]).tolist()
    metrics.update(Metric.from_dict(dict(zip(values, numbers, strict=True)), aggregation=AggregationType.SUM))
    return policy_loss - alpha * term, metrics


def rows_with_entropy_term(data: TensorDict) -> torch.Tensor:
    """Find the rows, ``(N,)`` bool, whose entropy is used: all, or those with α · w ≠ 0 if the batch says so."""
    if not tu.get_non_tensor_data(data=data, key=WEIGHTED_ROWS_KEY, default=False):
        return torch.ones(data.batch_size[0], dtype=torch.bool, device=data["input_ids"].device)
    return (_required_alpha(data) * _required_weight(data)).squeeze(-1) != 0


def _for_verl(model_output: dict[str, torch.Tensor], data: TensorDict) -> dict[str, torch.Tensor]:
    """Remove the entropy from the input of veRL's loss if it may be missing for some rows.

    veRL's ``actor/entropy_loss`` would count the missing ones as 0, and would be 0 as long as α is 0. Its own entropy
    term has the coefficient 0 and does not need the entropy.
    """
    if not tu.get_non_tensor_data(data=data, key=WEIGHTED_ROWS_KEY, default=False):
        return model_output
    return {name: output for name, output in model_output.items() if name != "entropy"}


def _required_alpha(data: TensorDict) -> float:
    alpha = tu.get_non_tensor_data(data=data, key=ALPHA_KEY, default=None)
    if alpha is None:
        raise KeyError(f"the batch carries no {ALPHA_KEY!r}: was it sent by an entropy trainer (aer_…)?")
    return float(alpha)


def _signal(data: TensorDict) -> Mapping[str, float]:
    """Read the regularizer's numbers. A regularizer raises KeyError if its numbers are missing."""
    return json.loads(tu.get_non_tensor_data(data=data, key=SIGNAL_KEY, default=None) or "{}")


def _required_weight(data: TensorDict) -> torch.Tensor:
    """Return the rows' weights as ``(N, 1)``. Storage backends return ``(N,)`` or ``(N, 1)``."""
    if WEIGHT_FIELD not in data:
        raise KeyError(
            f"the batch carries no {WEIGHT_FIELD!r}: write the field for every row, and pass on the batch that "
            "TransferQueue returned for it"
        )
    weight = data[WEIGHT_FIELD]
    if weight.is_nested:
        weight = weight.values()
    if weight.numel() != data.batch_size[0]:
        raise ValueError(f"{weight.numel()} entropy weights for {data.batch_size[0]} rows")
    return weight.reshape(-1, 1)


def _token_entropy(model_output: dict[str, torch.Tensor], data: TensorDict, from_log_probs: bool) -> torch.Tensor:
    """Return H of each response token, ``(N, T)`` nats with gradient."""
    if from_log_probs:
        return -no_padding_2_padding(model_output["log_probs"], data)
    if "entropy" not in model_output:
        raise KeyError("the actor returned no token entropy: set actor_rollout_ref.actor.calculate_entropy=true")
    require_measure_applied(data)
    return no_padding_2_padding(model_output["entropy"], data)


def _gradient_size(policy_loss: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Compute Σ |∂L_policy/∂log π|: backpropagate to the log-probs only, not into the policy."""
    if not policy_loss.requires_grad:
        return policy_loss.new_zeros(())
    (gradient,) = torch.autograd.grad(policy_loss, log_probs, retain_graph=True)
    return (gradient.values() if gradient.is_nested else gradient).abs().sum()


def _update_entropy(entropy: torch.Tensor, mask: torch.Tensor, config: ActorConfig) -> dict[str, torch.Tensor]:
    """Return the sums of entropy and tokens. veRL sums over micro-batches and averages over ranks and mini-batches.

    The sums travel separately, because a mean of means is wrong if ranks or micro-batches have unequal numbers of
    tokens.
    """
    dp_size = config.global_batch_info["dp_size"]
    return {
        UPDATE_ENTROPY_NATS: torch.where(mask, entropy, 0).double().sum() * dp_size,
        UPDATE_TOKENS: mask.double().sum() * dp_size,
    }
