"""Methods for agents of several turns."""

from __future__ import annotations

from verl_aer.methods.base import Method, register_method
from verl_aer.parts.allocation import Uniform
from verl_aer.parts.controller import Fixed
from verl_aer.parts.measure import Full
from verl_aer.parts.regularizer import HistoryHinge
from verl_aer.parts.target import History
from verl_aer.parts.token_selection import Turns


@register_method("epo")
def epo() -> Method:
    """L = L_policy - lambda * mean[H - beta_k * weight * (max(0, kappa_l H_W - H) + max(0, H - kappa_r H_W))]. EPO.

    H_W is the mean entropy of all earlier steps, beta_k = 1 + exp(-gamma k/k_mid) with k_mid = floor(K/2); the mean is
    over tokens, then turns, then trajectories. The weight is ALFWorld's, 0.05 is ScienceWorld's. With kappa_l = 0, as
    in the paper's tables, the lower hinge never acts: entropies are only kept from above.
    """
    return Method(
        allocation=Uniform(),
        measure=Full(),
        token_selection=Turns(),
        target=History(),
        controller=Fixed(coefficient=0.001),
        regularizer=HistoryHinge(),
        provenance="published",
        source="arXiv 2509.22576",
        summary="EPO: a small bonus, and a hinge that draws each token back into a band around past entropies",
        aggregation="seq-mean-token-mean",
        watch="aer/bonus_slope: the bonus less the hinge; aer/target moves with the run's mean entropy",
        differences=(
            "The paper's hinge. The authors' code adds a constant where a token is outside the band, which has no "
            "gradient; keeps its history by turn, filled up with zeros; and has another phase weight. A rollout of "
            "several outputs (rows) counts each of them as a trajectory. H_t of the log is the mean over all tokens, "
            "turns weighted alike."
        ),
    )
