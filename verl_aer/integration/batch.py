"""Read the rows of a batch from TransferQueue, and write weights, rewards and advantages to it.

A *row* is one output of an agent loop. Its key is ``{uid}_{session}_{index}``: the prompt, the rollout of that
prompt, and the position of the output within the rollout. veRL appends padding rows to make the batch divisible. They
carry the tag ``is_padding`` and a copy of a real row's reward fields, and belong to no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict, is_non_tensor
from transfer_queue import KVBatchMeta

from verl_aer.config.schema import EntropyConfig
from verl_aer.parts.token_selection import TokenSelection
from verl_aer.rollouts.question_memory import question_id
from verl_aer.rollouts.types import BatchRows, Tokens

WEIGHT_FIELD = "entropy_weight"
"""TransferQueue field, ``(N,)`` float32: each trajectory's share of the global coefficient."""

FILLED_IN_KEY = "acc"
"""Key under which veRL's reward managers report the reward if the reward function returns a bare number."""

SCORE_KEY = "score"
"""Key that every dict of a reward function has. veRL's reward managers report the whole dict."""


def read_rows(batch: KVBatchMeta, config: EntropyConfig, reward_is_colocated: bool) -> BatchRows:
    """Fetch the data of ``batch`` that the parts of the method and the controller need.

    With a colocated reward model, veRL writes the reward's report as columns of the batch. Without one, columns of
    these names belong to the data set and are not read.

    If the measure is computed from log-probs, the entropy is -log π of the sampled tokens.

    Call it before veRL computes advantages. Rollout correction rewrites ``response_mask`` in that step, and the
    controlled entropy is that of all response tokens.
    """
    from_log_probs = config.measure.from_log_probs
    fields = ["rm_scores", "response_mask", "extra_fields", "old_log_probs" if from_log_probs else "entropy"]
    fields += ["raw_prompt", "extra_info", "data_source"] if config.uses_questions else []
    reported = [config.correctness.reward_key, SCORE_KEY] if reward_is_colocated else []
    fields += [name for name in reported if name not in fields]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    uid, session, index = zip(*(_parse_key(key) for key in batch.keys), strict=True)
    is_padding = np.array([bool(tag.get("is_padding", False)) for tag in batch.tags])
    mask = [row.bool() for row in _rows_of(data["response_mask"])]
    entropy = _token_entropies(data, from_log_probs)
    reward = np.array([row.double().sum().item() for row in _rows_of(data["rm_scores"])])
    infos = _reward_infos(data, len(batch.keys), reported)
    acc = [_number(info.get(config.correctness.reward_key)) for info in infos]
    return BatchRows(
        uid=list(uid),
        session=np.array(session),
        index=np.array(index),
        is_padding=is_padding,
        reward=reward,
        acc=acc,
        acc_is_reward=_acc_is_reward(acc, reward, infos, config.correctness.reward_key),
        entropy_nats=None if entropy is None else _selected_sums(entropy, mask, config.token_selection),
        tokens=np.array([float(row.sum()) for row in mask]),
        question=_read_questions(data, config.question_memory.question_key) if config.uses_questions else None,
        entropy=_padded(entropy) if config.reward_shaping.uses_entropy and entropy is not None else None,
        mask=_padded(mask) if config.reward_shaping.uses_entropy else None,
    )


def read_tokens(batch: KVBatchMeta, from_log_probs: bool, with_entropy: bool) -> Tokens:
    """Fetch the advantages that veRL has computed, with mask, log-probs and entropy of the same tokens."""
    fields = [
        "advantages",
        "response_mask",
        "old_log_probs",
        *(["entropy"] if with_entropy and not from_log_probs else []),
    ]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    columns = {name: _padded(_rows_of(data[name])) for name in fields}
    entropy = -columns["old_log_probs"] if from_log_probs else columns.get("entropy")
    mask = columns["response_mask"].bool()
    return Tokens(columns["advantages"], mask, columns["old_log_probs"], entropy)


def write_advantages(batch: KVBatchMeta, advantages: torch.Tensor) -> KVBatchMeta:
    """Replace veRL's advantages by ``(N, T)`` advantages and return the batch to use next."""
    current = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages"])
    rows = _rows_of(current["advantages"])
    return _put(batch, "advantages", [new[: len(old)] for new, old in zip(advantages, rows, strict=True)])


def add_rewards(batch: KVBatchMeta, change: np.ndarray) -> KVBatchMeta:
    """Add ``(N,)`` to the rewards, at the last token of each row as veRL does, and return the batch to use next."""
    current = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["rm_scores"])
    rows = [row.clone() for row in _rows_of(current["rm_scores"])]
    for row, added in zip(rows, change, strict=True):
        row[-1] += added
    return _put(batch, "rm_scores", rows)


def attach_weights(batch: KVBatchMeta, weights: np.ndarray) -> KVBatchMeta:
    """Write one weight per row and return the batch whose workers will fetch it.

    Use the *returned* batch: workers read the fields that its meta lists, and the meta passed in does not list the
    weights. ``weights`` is ``(N,)`` float32 and covers every row, padding included, because TransferQueue drops a field
    from the whole batch if one row lacks it.
    """
    if len(weights) != len(batch.keys):
        raise ValueError(f"{len(weights)} entropy weights for {len(batch.keys)} rows of the batch")
    fields = TensorDict({WEIGHT_FIELD: torch.as_tensor(weights, dtype=torch.float32)}, batch_size=len(batch.keys))
    return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def _put(batch: KVBatchMeta, field: str, rows: list[torch.Tensor]) -> KVBatchMeta:
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    fields = TensorDict({field: nested}, batch_size=len(rows))
    return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def _parse_key(key: str) -> tuple[str, int, int]:
    uid, session, index = key.rsplit("_", 2)
    return uid, int(session), int(index)


def _rows_of(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return one tensor per row, for a jagged and for a dense batch."""
    return tensor.unbind()


def _items_of(column: Any) -> list[Any]:
    """Return one item per row. The container depends on the storage backend."""
    return [item.data if is_non_tensor(item) else item for item in list(column)]


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _token_entropies(data: TensorDict, from_log_probs: bool) -> list[torch.Tensor] | None:
    if from_log_probs:
        return [-row for row in _rows_of(data["old_log_probs"])]
    return list(_rows_of(data["entropy"])) if "entropy" in data else None


def _selected_sums(
    entropy: list[torch.Tensor], mask: list[torch.Tensor], token_selection: TokenSelection
) -> np.ndarray:
    """Compute Σ s·H of each row."""
    sums = []
    for values, row in zip(entropy, mask, strict=True):
        # Tokens outside the mask may hold NaN, and NaN · 0 is NaN: leave them out instead of multiplying by zero.
        values = values.double()
        if token_selection.selects:
            values = values * token_selection.weights(values[None], row[None])[0]
        sums.append(values[row].sum().item())
    return np.array(sums)


def _read_questions(data: TensorDict, key: str) -> list[str]:
    """Read the id of each row's question. A padding row has the id of the row that it copies."""

    def column(name: str) -> list[Any]:
        return _items_of(data[name]) if name in data else [None] * data.batch_size[0]

    columns = zip(column("extra_info"), column("data_source"), column("raw_prompt"), strict=True)
    return [question_id(extra_info, source, prompt, key) for extra_info, source, prompt in columns]


def _reward_infos(data: TensorDict, rows: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Collect the reward's report of each row: its ``reward_extra_info`` and the ``columns`` that the batch has."""
    extra_fields = _items_of(data["extra_fields"]) if "extra_fields" in data else [None] * rows
    found = {name: _items_of(data[name]) for name in columns if name in data}
    return [
        {**{name: column[row] for name, column in found.items()}, **_reward_info(fields)}
        for row, fields in enumerate(extra_fields)
    ]


def _reward_info(extra_fields: Any) -> dict[str, Any]:
    return (extra_fields or {}).get("reward_extra_info") or {}


def _number(value: Any) -> float | None:
    """Convert a reported value to a number; None for text, a list or nothing."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    return float(value) if isinstance(value, Real) else None


def _acc_is_reward(
    acc: Sequence[float | None], reward: np.ndarray, infos: Sequence[dict[str, Any]], key: str
) -> np.ndarray:
    """Find the rows, ``(N,)`` bool, where veRL filled in the reward as correctness.

    There the two are equal and the report has no score. If a reward function returns a dict, veRL's reward managers
    report the whole dict, its score included.
    """
    numbers = np.array([np.nan if value is None else value for value in acc], dtype=np.float64)
    own = np.array([SCORE_KEY in info for info in infos], dtype=bool)
    # The reward was stored as float32.
    return np.isclose(numbers, reward, rtol=1e-6, atol=1e-6) & ~own & (key == FILLED_IN_KEY)
