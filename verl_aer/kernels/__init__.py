"""Log-probabilities and entropy of tokens in one pass over the logits, forward and backward."""

from verl_aer.kernels.logprob_entropy import MEASURES, logprob_and_entropy
from verl_aer.kernels.recomputed import recomputed_entropy

__all__ = ["MEASURES", "logprob_and_entropy", "recomputed_entropy"]
