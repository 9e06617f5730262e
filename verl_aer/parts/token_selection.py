"""Token selections: weight the tokens of a response in its mean entropy.

    H of a response = (1/n) * sum_t s_t * H_t,   (1/n) * sum_t s_t = 1,   n its number of tokens

The measured and the pushed entropy use the same weights s. If they are two measures, each has weights computed from
its entropies. The mean weight of a response is 1, so a coefficient means the same for every selection, and a response
counts in proportion to its tokens.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field

from verl_aer.parts.base import Part, register_part


class TokenSelection(Part, role="token_selection"):
    """Base of token selections: a function from a batch's entropies to token weights."""

    selects: ClassVar[bool] = True
    """Whether the weights can differ within a response; if not, they are not computed."""

    @abstractmethod
    def weights(self, entropy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the weight s >= 0 of each token, without a gradient.

        Args:
            entropy: ``(N, T)`` nats, detached.
            mask: ``(N, T)`` bool, the tokens that the policy wrote.

        Returns:
            ``(N, T)`` in the dtype of ``entropy``; 0 outside the mask; mean 1 inside it in each row with tokens.
        """


@register_part("all")
class All(TokenSelection):
    """s_t = 1: every token that the policy wrote."""

    selects: ClassVar[bool] = False

    def weights(self, entropy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask.to(entropy.dtype)


@register_part("top_quantile")
class TopQuantile(TokenSelection):
    """s_t = n / k on the k tokens of highest entropy within a response, 0 on the others:

        k = n - ceil(quantile * (n - 1))

    These are the tokens at or above the quantile of the n entropies; of equal entropies, earlier tokens come first. At
    least one token counts. SIREN (arXiv 2509.25133) uses this rule, but its code excludes the tokens at the quantile.
    TRL's top_entropy_quantile is a different rule: its quantile is over all tokens of the global batch.

    >>> entropy = torch.tensor([[0.1, 0.4, 0.2, 0.3, 9.9]])
    >>> TopQuantile(quantile=0.5).weights(entropy, torch.tensor([[True, True, True, True, False]]))
    tensor([[0., 2., 0., 2., 0.]])
    """

    quantile: float = Field(default=0.8, ge=0, lt=1)
    """Share of a response's tokens, those of lowest entropy, that does not count; 0 is ``all``. 0.8 is SIREN's
    value."""

    def weights(self, entropy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        n = mask.sum(dim=-1, keepdim=True)
        # In float64, so that 0.8 * 5 is exactly 4 on every device.
        k = n - (self.quantile * (n - 1).clamp(min=0).double()).ceil().long()
        order = entropy.masked_fill(~mask, -math.inf).argsort(dim=-1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(
            -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
        )
        # Tokens outside the mask rank last, and k <= n, so none of them is selected.
        return (rank < k) * (n / k.clamp(min=1)).to(entropy.dtype)


@register_part("turns")
class Turns(TokenSelection):
    """s_t = n / (R * n_r), n_r the tokens of the token's turn and R the number of turns: all turns count equally.

    A turn is a sequence of tokens that the policy wrote without an interruption by a tool or an environment. EPO
    (arXiv 2509.22576) averages over tokens, then over turns, then over trajectories.

    >>> mask = torch.tensor([[True, True, True, False, True]])
    >>> Turns().weights(torch.zeros(1, 5), mask)  # 4 tokens in 2 turns of 3 and 1
    tensor([[0.6667, 0.6667, 0.6667, 0.0000, 2.0000]])
    """

    def weights(self, entropy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        begins = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
        turn = begins.cumsum(dim=-1) * mask  # 0 outside the mask, else 1, 2, ... within the row
        sizes = torch.zeros(*turn.shape[:-1], turn.shape[-1] + 1, dtype=torch.long, device=turn.device)
        sizes.scatter_add_(-1, turn, mask.long())
        n, turns = mask.sum(dim=-1, keepdim=True), begins.sum(dim=-1, keepdim=True)
        own = sizes.gather(-1, turn).clamp(min=1)
        return torch.where(mask, n / (turns.clamp(min=1) * own), 0.0).to(entropy.dtype)
