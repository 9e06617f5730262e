"""The one module that talks to TransferQueue: rows of a training batch in; coefficients, rewards and advantages out.

A *row* is one output of an agent loop. Its key is ``{uid}_{session}_{index}``: the prompt, the rollout of that
prompt, and the output's place within the rollout. Rows that veRL appended to make the batch divisible carry the
tag ``is_padding`` and a copy of a real row's reward fields; they belong to no prompt.
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
"""What veRL's reward managers call the reward where the reward function returns one number and no dict."""

SCORE_KEY = "score"
"""What every dict has that a reward function returns to veRL's reward managers, which report all of it."""


def read_rows(batch: KVBatchMeta, config: EntropyConfig, reward_is_colocated: bool) -> BatchRows:
    """Fetch what the parts of the method and the controller need of ``batch``.

    With a colocated reward model veRL writes what the reward reports as columns of the batch. Without one, columns of
    these names are the data set's and are not read.

    Where the measure is one of the sample, -log π of the sampled tokens stands for what veRL calls entropy.

    Call it before veRL computes advantages: rollout correction rewrites ``response_mask`` there, and the controlled
    entropy is that of all response tokens.
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
        acc_is_reward=_are_the_reward(acc, reward, infos, config.correctness.reward_key),
        entropy_nats=None if entropy is None else _selected_sums(entropy, mask, config.token_selection),
        tokens=np.array([float(row.sum()) for row in mask]),
        question=_read_questions(data, config.question_memory.question_key) if config.uses_questions else None,
        entropy=_padded(entropy) if config.reward_shaping.uses_entropy and entropy is not None else None,
        mask=_padded(mask) if config.reward_shaping.uses_entropy else None,
    )


def read_tokens(batch: KVBatchMeta, from_log_probs: bool, with_entropy: bool) -> Tokens:
    """The advantages that veRL has computed, and what is known of the same tokens."""
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
    """Put ``(N, T)`` advantages in place of veRL's, and return the batch to use next."""
    current = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages"])
    rows = _rows_of(current["advantages"])
    return _put(batch, "advantages", [new[: len(old)] for new, old in zip(advantages, rows, strict=True)])


def add_rewards(batch: KVBatchMeta, change: np.ndarray) -> KVBatchMeta:
    """Add ``(N,)`` to the rows' rewards, at the last token, where veRL has them; return the batch to use next."""
    current = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["rm_scores"])
    rows = [row.clone() for row in _rows_of(current["rm_scores"])]
    for row, added in zip(rows, change, strict=True):
        row[-1] += added
    return _put(batch, "rm_scores", rows)


def attach_weights(batch: KVBatchMeta, weights: np.ndarray) -> KVBatchMeta:
    """Write one weight per row and return the batch whose workers will fetch it.

    Use the *returned* batch: workers read the fields that its meta lists, and the meta passed in lists none of ours.
    ``weights`` is ``(N,)`` float32; every row is written, padding included, because TransferQueue drops a
    field from the whole batch when one row lacks it.
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
    """One tensor per row, whether the storage returned a jagged or a dense batch."""
    return tensor.unbind()


def _items_of(column: Any) -> list[Any]:
    """One item per row: which container comes back depends on the storage backend."""
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
    """Σ s·H of each row."""
    sums = []
    for values, row in zip(entropy, mask, strict=True):
        # A token outside the mask may hold anything, a NaN too: it is left out, not multiplied by zero.
        values = values.double()
        if token_selection.selects:
            values = values * token_selection.weights(values[None], row[None])[0]
        sums.append(values[row].sum().item())
    return np.array(sums)


def _read_questions(data: TensorDict, key: str) -> list[str]:
    """The id of each row's question; padding rows have that of the row they are a copy of."""

    def column(name: str) -> list[Any]:
        return _items_of(data[name]) if name in data else [None] * data.batch_size[0]

    columns = zip(column("extra_info"), column("data_source"), column("raw_prompt"), strict=True)
    return [question_id(extra_info, source, prompt, key) for extra_info, source, prompt in columns]


def _reward_infos(data: TensorDict, rows: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """What the reward reports of each row: its ``reward_extra_info``, and those ``columns`` that the batch has."""
    extra_fields = _items_of(data["extra_fields"]) if "extra_fields" in data else [None] * rows
    found = {name: _items_of(data[name]) for name in columns if name in data}
    return [
        {**{name: column[row] for name, column in found.items()}, **_reward_info(fields)}
        for row, fields in enumerate(extra_fields)
    ]


def _reward_info(extra_fields: Any) -> dict[str, Any]:
    return (extra_fields or {}).get("reward_extra_info") or {}


def _number(value: Any) -> float | None:
    """None for what is not one number: a reward may report text, or nothing."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    return float(value) if isinstance(value, Real) else None


def _are_the_reward(
    acc: Sequence[float | None], reward: np.ndarray, infos: Sequence[dict[str, Any]], key: str
) -> np.ndarray:
    """Where veRL reports the reward as correctness, ``(N,)`` bool: the two are equal, and no score is beside them.

    veRL's reward managers report the whole dict that a reward function returns, its score included.
    """
    numbers = np.array([np.nan if value is None else value for value in acc], dtype=np.float64)
    own = np.array([SCORE_KEY in info for info in infos], dtype=bool)
    # The reward was a float32.
    return np.isclose(numbers, reward, rtol=1e-6, atol=1e-6) & ~own & (key == FILLED_IN_KEY)
