"""A step's rollouts as the shapings of rewards and advantages see them: on the driver, before the update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from verl_aer.errors import VerlAerError
from verl_aer.rollouts.groups import Groups


class ShapingError(VerlAerError, ValueError):
    """A shaping returned something that cannot be used; the message names the row and the value."""


@dataclass(frozen=True)
class Rollouts:
    """The N rows of a batch.

    groups: the prompts, with the memory of their questions where a part of the method asks for it.
    correct: ``(N,)`` float64 in [0, 1], 0 on padding, NaN where nothing says it. tokens: ``(N,)`` float64, response
    tokens of the whole rollout, all of its outputs. is_last: ``(N,)`` bool, the row that carries its rollout's reward;
    False on padding.
    entropy, mask: ``(N, T)`` nats and bool of each response token; None where no part of the method asks for them.
    """

    groups: Groups
    correct: np.ndarray
    tokens: np.ndarray
    is_last: np.ndarray
    entropy: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def shortest_correct(self) -> np.ndarray:
        """Tokens of each prompt's shortest correct rollout, ``(P,)``; NaN where none is correct."""
        shortest = np.full(len(self.groups.accuracy), np.inf)
        solved = self.is_last & (self.correct > 0.5)
        np.minimum.at(shortest, self.groups.prompt_of_row[solved], self.tokens[solved])
        return np.where(np.isinf(shortest), np.nan, shortest)


@dataclass(frozen=True)
class Tokens:
    """The tokens of N rows, each ``(N, T)``; what lies outside the mask means nothing.

    advantages: float32. mask: bool, the tokens that the policy loss counts. log_probs: float32, of the sampled tokens
    under the policy of the old log-probs. entropy: nats, under the same policy; None where veRL does not compute it.
    """

    advantages: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor
    entropy: torch.Tensor | None
