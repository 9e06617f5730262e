"""veRL's unfused functions in plain PyTorch, for a machine with torch and Triton but without veRL.

Log-probs use PyTorch's cross-entropy. It is faster than veRL's fallback, a loop over rows, and slower than the fused
one of flash-attn, which veRL prefers if it is installed.
"""

from __future__ import annotations

import torch


def logprobs_from_logits(logits: torch.Tensor, labels: torch.Tensor, inplace_backward: bool = True) -> torch.Tensor:
    del inplace_backward  # Only flash-attn uses it.
    return -torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def entropy_from_logits(logits: torch.Tensor) -> torch.Tensor:
    pi = torch.softmax(logits, dim=-1)
    return torch.logsumexp(logits, dim=-1) - (pi * logits).sum(dim=-1)


def entropy_from_logits_with_chunking(logits: torch.Tensor, chunk_size: int = 2048) -> torch.Tensor:
    return torch.cat([entropy_from_logits(chunk.float()) for chunk in logits.split(chunk_size)])
