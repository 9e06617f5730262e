"""EPO, Entropy-regularized Policy Optimization for multi-turn agents (arXiv 2509.22576)."""

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

    H_W is the mean entropy of all earlier steps, beta_k = 1 + exp(-gamma k/k_mid) with k_mid = floor(K/2). The mean is
    over tokens, then turns, then trajectories. The default weight is that of ALFWorld; ScienceWorld uses 0.05. With
    kappa_l = 0, as in the paper's tables, the lower hinge never acts: the entropy has only an upper bound.
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
        summary="EPO: a small bonus, and a hinge that pulls each token back into a band around past entropies",
        aggregation="seq-mean-token-mean",
        watch="aer/bonus_slope, the bonus minus the hinge; aer/target moves with the run's mean entropy",
        differences=(
            "The hinge is the paper's. The authors' code adds a constant if a token is outside the band, which has no "
            "gradient. It keeps its history per turn, padded with zeros, and uses another phase weight. Here each "
            "output (row) of a rollout counts as a trajectory. The logged H_t is the mean over all tokens, with all "
            "turns weighted equally."
        ),
    )
