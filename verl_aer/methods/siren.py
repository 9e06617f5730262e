"""SIREN, selective entropy regularization with a self-anchor (arXiv 2509.25133)."""

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

    H~ is the entropy of the smallest set of tokens of mass 0.8; of each response the tokens above the 0.8 quantile
    count; H_anchor is the same mean in the first step. beta = 0.005, all as in the paper.
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
        summary="SIREN: the nucleus entropy of uncertain tokens, drawn to its value in the first step",
        aggregation="seq-mean-token-mean",
        watch="aer/entropy stays near aer/initial_entropy; aer/bonus_slope is above 0 while it is below",
        differences=(
            "The square is of the step's mean entropy and not of each micro-batch's: its gradient does not depend on "
            "how a batch is cut. The nucleus holds the token that crosses p, as the paper says; the authors' code "
            "leaves it out, and a token of more than p then has no entropy. Tokens at the quantile count; in the code "
            "those above it alone, and a response of equal entropies has none. Only tokens of the response count; the "
            "code's mask is not cut with the response mask."
        ),
    )
