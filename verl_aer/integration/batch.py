"""The one module that talks to TransferQueue: rows of a training batch in, one coefficient per row out.

A *row* is one output of an agent loop. Its key is ``{uid}_{session}_{index}``: the prompt, the rollout of that
prompt, and the output's place within the rollout. Rows that veRL appended to make the batch divisible carry the
tag ``is_padding`` and a copy of a real row's reward fields; they belong to no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from verl_aer.config.schema import CorrectnessConfig
from verl_aer.correctness import CorrectnessError, Groups, group_rows, trajectory_correctness

WEIGHT_FIELD = "entropy_weight"
"""TransferQueue field, ``(N,)`` float32: each trajectory's share of the global coefficient."""


@dataclass(frozen=True)
class BatchRows:
    """A training batch as the entropy control sees it; N rows in the order of the batch's keys.

    uid: prompt of each row, ``(N,)``; session, index: ``(N,)`` int; is_padding: ``(N,)`` bool.
    reward: ``(N,)`` float64, the reward before any KL penalty. acc: ``(N,)`` float64, or None where the
    reward reports no correctness.
    entropy_nats: ``(N,)`` float64, the functional under the policy of the old log-probs, added up over the
    response's tokens; None where veRL does not compute it (bypass mode). tokens: ``(N,)`` float64.
    """

    uid: list[str]
    session: np.ndarray
    index: np.ndarray
    is_padding: np.ndarray
    reward: np.ndarray
    acc: np.ndarray | None
    entropy_nats: np.ndarray | None
    tokens: np.ndarray

    def groups(self, correctness: CorrectnessConfig) -> Groups:
        """Group accuracy of each prompt from its rollouts' correctness, padding left out."""
        correct = np.zeros(len(self.uid))
        real = ~self.is_padding
        correct[real] = trajectory_correctness(
            self.reward[real], None if self.acc is None else self.acc[real], correctness.threshold
        )
        return group_rows(self.uid, self.session, self.index, correct, self.is_padding)


def read_rows(batch: KVBatchMeta, correctness: CorrectnessConfig, of_sample: bool = False) -> BatchRows:
    """Fetch what the allocation and the controller need of ``batch``.

    of_sample: take -log π of the sampled tokens for their entropy, in place of what veRL calls entropy.

    Call it before veRL computes advantages: rollout correction rewrites ``response_mask`` there, and the controlled
    entropy is that of all response tokens.
    """
    fields = ["rm_scores", "response_mask", "extra_fields", "old_log_probs" if of_sample else "entropy"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    uid, session, index = zip(*(_parse_key(key) for key in batch.keys), strict=True)
    is_padding = np.array([bool(tag.get("is_padding", False)) for tag in batch.tags])
    mask = _rows_of(data["response_mask"])
    return BatchRows(
        uid=list(uid),
        session=np.array(session),
        index=np.array(index),
        is_padding=is_padding,
        reward=np.array([row.double().sum().item() for row in _rows_of(data["rm_scores"])]),
        acc=_read_acc(data, correctness.key, is_padding),
        entropy_nats=_entropy_nats(data, mask, of_sample),
        tokens=np.array([row.double().sum().item() for row in mask]),
    )


def attach_weights(batch: KVBatchMeta, weights: np.ndarray) -> KVBatchMeta:
    """Write one weight per row and return the batch whose workers will fetch it.

    The *returned* batch must go on: workers read the fields that its meta lists, and the meta passed in lists none
    of ours. ``weights`` is ``(N,)`` float32; every row is written, padding included, because TransferQueue drops a
    field from the whole batch when one row lacks it.
    """
    if len(weights) != len(batch.keys):
        raise ValueError(f"{len(weights)} entropy weights for {len(batch.keys)} rows of the batch")
    fields = TensorDict({WEIGHT_FIELD: torch.as_tensor(weights, dtype=torch.float32)}, batch_size=len(batch.keys))
    return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def _parse_key(key: str) -> tuple[str, int, int]:
    uid, session, index = key.rsplit("_", 2)
    return uid, int(session), int(index)


def _rows_of(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """One tensor per row, whether the storage returned a jagged or a dense batch."""
    return tensor.unbind()


def _masked_sums(values: Sequence[torch.Tensor], mask: Sequence[torch.Tensor]) -> np.ndarray:
    return np.array(
        # A token outside the mask may hold anything, a NaN too: it is left out, not multiplied by zero.
        [value.double()[row.bool()].sum().item() for value, row in zip(values, mask, strict=True)]
    )


def _entropy_nats(data: TensorDict, mask: Sequence[torch.Tensor], of_sample: bool) -> np.ndarray | None:
    if of_sample:
        return -_masked_sums(_rows_of(data["old_log_probs"]), mask)
    return _masked_sums(_rows_of(data["entropy"]), mask) if "entropy" in data else None


def _read_acc(data: TensorDict, key: str, is_padding: np.ndarray) -> np.ndarray | None:
    """Each row's ``reward_extra_info[key]``, None where no row reports it.

    Raises CorrectnessError when only some rows do: a missing correctness is not a wrong answer.
    """
    if "extra_fields" not in data:
        return None
    # Which container comes back depends on the storage backend; each yields one item per row.
    rows = [getattr(row, "data", row) for row in list(data["extra_fields"])]
    found = [_reward_info(row).get(key) for row in rows]
    missing = [i for i, value in enumerate(found) if value is None and not is_padding[i]]
    if len(missing) == int((~is_padding).sum()):
        return None
    if missing:
        raise CorrectnessError(
            f"the reward reports {key!r} for some rollouts only (not for row {missing[0]} of the batch). Let the "
            f"reward function return {key!r} for every rollout, a wrong or empty answer included."
        )
    return np.array([0.0 if value is None else float(value) for value in found])


def _reward_info(extra_fields: Any) -> dict[str, Any]:
    return (extra_fields or {}).get("reward_extra_info") or {}
