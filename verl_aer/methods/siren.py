"""SIREN: selective entropy regularization with a self-anchor (arXiv 2509.25133)."""

from __future__ import annotations

from verl_aer.methods.base import Method, register_method
from verl_aer.parts.allocation import Uniform
from verl_aer.parts.controller import Fixed
from verl_aer.parts.measure import Nucleus
from verl_aer.parts.regularizer import SquaredAnchor
from verl_aer.parts.target import Anchored
from verl_aer.parts.token_selection import TopQuantile


@register_method("siren")
def siren() -> Method:
    """L = L_policy + beta * (mean H~ - H_anchor)^2, the mean over each response's most uncertain tokens. SIREN.

    H~ is the entropy of the smallest set of tokens of mass 0.8. The tokens of each response at or above the 0.8
    quantile count. H_anchor is the same mean in the first step. beta = 0.005. All values are the paper's.
    """
    return Method(
        allocation=Uniform(),
        measure=Nucleus(),
        token_selection=TopQuantile(),
        target=Anchored(tau=1.0),
        controller=Fixed(coefficient=0.005),
        regularizer=SquaredAnchor(),
        provenance="published",
        source="arXiv 2509.25133",
        summary="SIREN: pulls the nucleus entropy of uncertain tokens to its value in the first step",
        aggregation="seq-mean-token-mean",
        watch="aer/entropy stays near aer/initial_entropy; aer/bonus_slope is positive while the entropy is below",
        differences=(
            "The square is that of the step's mean entropy, so the gradient does not depend on the split into "
            "micro-batches; the code squares the mean of each micro-batch. The nucleus includes the token that crosses "
            "p, as in the paper; the code excludes it, so a distribution whose top token has more than p has no "
            "entropy. Tokens at the quantile count; the code counts only those above it, and none in a response of "
            "equal entropies. Only response tokens count; the code does not apply the response mask."
        ),
    )
