"""Types that the backends share: their settings, the size of a chunk, and the state saved for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from verl_aer.parts.measure import Clamped, Measure, Nucleus

CHUNK_BYTES = {"cpu": 2**21, "cuda": 2**27}
"""Size of one float32 temporary of a chunk of rows, by device type, for any vocabulary.

On a CPU it fits into a cache. On a GPU it holds hundreds of rows, because each operation is a kernel launch.
"""


def chunk_rows(logits: torch.Tensor) -> int:
    """Return the number of rows of ``(T, V)`` logits in a chunk, at least 1.

    Raises:
        ValueError: the device type is not supported.
    """
    if logits.device.type not in CHUNK_BYTES:
        raise ValueError(
            f"log-probs and entropy can be computed on {' and '.join(CHUNK_BYTES)} tensors, but the logits are on "
            f"{logits.device.type}; use veRL's engine there"
        )
    return max(1, CHUNK_BYTES[logits.device.type] // (4 * max(logits.shape[-1], 1)))


@dataclass(frozen=True)
class KernelSettings:
    """Settings of the entropy: its measure, and the number of vocabulary columns that it is over (None for all)."""

    measure: Measure
    columns: int | None

    def keeps_all(self, vocabulary: int) -> bool:
        """Tell whether the entropy is over all tokens of the vocabulary."""
        return leaves_none_out(self.measure) and (self.columns is None or self.columns >= vocabulary)


def leaves_none_out(measure: Measure) -> bool:
    if isinstance(measure, Clamped):
        return measure.p == 0
    return not isinstance(measure, Nucleus) or measure.p >= 1


class SavedRows(NamedTuple):
    """Saved state for the backward pass in addition to the logits, each tensor ``(T,)``.

    top: max of the logits, y = (logits - top) / temperature. log_z: log Z. log_zk, mean_y: log Z and E[y] over the kept
    tokens K. threshold, cut: a logit and an index that define K; unused if all tokens are kept.
    """

    top: torch.Tensor
    log_z: torch.Tensor
    log_zk: torch.Tensor
    mean_y: torch.Tensor
    threshold: torch.Tensor
    cut: torch.Tensor

    @classmethod
    def empty(cls, rows: int, dtype: torch.dtype, device: torch.device) -> SavedRows:
        zeros = partial(torch.zeros, rows, dtype=dtype, device=device)
        return cls(zeros(), zeros(), zeros(), zeros(), zeros(), cut=zeros(dtype=torch.long))
