"""What veRL's unfused path computes, in plain PyTorch: for a machine that has torch and Triton, but not veRL.

Log-probs by PyTorch's own cross-entropy, which is faster than veRL's fallback, a loop over rows, and slower than the
fused one of flash-attn, which veRL prefers where it is installed.
"""

from __future__ import annotations

import torch


def logprobs_from_logits(logits: torch.Tensor, labels: torch.Tensor, inplace_backward: bool = True) -> torch.Tensor:
    del inplace_backward  # flash-attn's alone
    return -torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def entropy_from_logits(logits: torch.Tensor) -> torch.Tensor:
    pi = torch.softmax(logits, dim=-1)
    return torch.logsumexp(logits, dim=-1) - (pi * logits).sum(dim=-1)


def entropy_from_logits_with_chunking(logits: torch.Tensor, chunk_size: int = 2048) -> torch.Tensor:
    return torch.cat([entropy_from_logits(chunk.float()) for chunk in logits.split(chunk_size)])
