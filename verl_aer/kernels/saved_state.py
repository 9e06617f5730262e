"""What the backends share: how rows are asked for, how many make a chunk, and what is kept between the passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from verl_aer.parts.measure import Clamped, Measure, Nucleus

CHUNK_BYTES = {"cpu": 2**21, "cuda": 2**27}
"""Of one float32 temporary: what a chunk of rows may take, whatever the vocabulary, by the type of the device.

On a CPU it stays in a cache. On a GPU, where each operation is a launch, it is hundreds of rows.
"""


def chunk_rows(logits: torch.Tensor) -> int:
    """How many rows of ``(T, V)`` logits make a chunk, at least 1.

    Raises:
        ValueError: a device for which no size is known.
    """
    if logits.device.type not in CHUNK_BYTES:
        raise ValueError(
            f"log-probs and entropy are computed on {' and '.join(CHUNK_BYTES)} tensors, and the logits are on "
            f"{logits.device.type}: use veRL's own engine there"
        )
    return max(1, CHUNK_BYTES[logits.device.type] // (4 * max(logits.shape[-1], 1)))


@dataclass(frozen=True)
class Settings:
    """measure: whose entropy it is. columns: of the vocabulary that it is over; None: all."""

    measure: Measure
    columns: int | None

    def keeps_all(self, vocabulary: int) -> bool:
        """Whether no token is ever left out of the entropy."""
        return leaves_none_out(self.measure) and (self.columns is None or self.columns >= vocabulary)


def leaves_none_out(measure: Measure) -> bool:
    if isinstance(measure, Clamped):
        return measure.p == 0
    return not isinstance(measure, Nucleus) or measure.p >= 1


class State(NamedTuple):
    """What the backward pass needs beside the logits, each ``(T,)``.

    top: max of the logits, y = (logits - top) / temperature. log_z: log Z. log_zk, mean_y: log Z and E[y] over the kept
    tokens K. threshold, cut: which tokens K are, by a logit and an index; unused where all are kept.
    """

    top: torch.Tensor
    log_z: torch.Tensor
    log_zk: torch.Tensor
    mean_y: torch.Tensor
    threshold: torch.Tensor
    cut: torch.Tensor

    @classmethod
    def empty(cls, rows: int, dtype: torch.dtype, device: torch.device) -> State:
        numbers = [torch.zeros(rows, dtype=dtype, device=device) for _ in cls._fields[:-1]]
        return cls(*numbers, torch.zeros(rows, dtype=torch.long, device=device))
