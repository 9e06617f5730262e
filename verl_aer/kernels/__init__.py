"""Log-probabilities and entropy of tokens in one pass over the logits, forward and backward."""

from verl_aer.kernels.operation import FUNCTIONALS, logprob_and_entropy

__all__ = ["FUNCTIONALS", "logprob_and_entropy"]
