"""AER, Adaptive Entropy Regularization (arXiv 2510.10959), as read here, and its ablations.

    w(q)        = max(0, rho - g(q)) / rho                               difficulty-aware allocation
    H*          = tau * H0                                               initial-anchored target
    alpha_{t+1} = clip(alpha_t + ki * (H* - H_t), alpha_min, alpha_max)  dynamic global coefficient
    L           = L_policy - (1/N_tokens) sum_{i,t} m_{i,t} * alpha * w(q_i) * H_{i,t}

Where few prompts are below rho the weights have a floor, and a prompt's entropy a ceiling: ``Difficulty`` says which.
The paper's three parts are known; the exact map, rho, ki, the bounds and the aggregation are not, so each is
a named option and this is *a reading*, not a reproduction. With tau < 1 and alpha_init = 0 nothing happens until
the entropy has fallen below tau * H0.
"""

from __future__ import annotations

from verl_aer.methods.base import Method, register_method
from verl_aer.parts.allocation import Difficulty, Uniform
from verl_aer.parts.controller import PI, Fixed
from verl_aer.parts.measure import Full
from verl_aer.parts.target import Absolute, Anchored, NoTarget

SOURCE = "arXiv 2510.10959"


@register_method("aer")
def aer() -> Method:
    """w(q) = max(0, rho - g)/rho, H* = tau*H0, alpha += ki*(H* - H_t), clipped. Source: arXiv 2510.10959."""
    return Method(
        allocation=Difficulty(),
        measure=Full(),
        target=Anchored(),
        controller=PI(),
        provenance="reimplementation",
        source=SOURCE,
        summary="harder prompts get more entropy bonus; alpha holds the entropy at tau * H0",
        differences=(
            "The paper's three parts are known, its formulas are not: the map, rho, ki, the bounds, the aggregation "
            "and kp are ours, each a named option, and so are the floor of the mean weight and the ceiling of a "
            "prompt's entropy, which act where few prompts are below rho. tau = 0.4 is reported second-hand."
        ),
        watch="aer/entropy comes down to aer/target and stays; aer/saturated_steps stays 0; aer/weight/nonzero_frac",
    )


@register_method("aer_allocation_only")
def aer_allocation_only() -> Method:
    """w(q) = max(0, rho - g)/rho with a fixed alpha. Source: the ablation rows of arXiv 2510.10959."""
    return Method(
        allocation=Difficulty(),
        measure=Full(),
        target=NoTarget(),
        controller=Fixed(),
        provenance="ablation",
        source=SOURCE,
        summary="AER's allocation with a fixed alpha: no target, no controller",
        watch="aer/entropy: nothing holds it; aer/entropy/hard against aer/entropy/easy",
    )


@register_method("aer_no_allocation")
def aer_no_allocation() -> Method:
    """w(q) = 1, H* = tau*H0, alpha += ki*(H* - H_t), clipped. AER without its allocation."""
    return Method(
        allocation=Uniform(),
        measure=Full(),
        target=Anchored(),
        controller=PI(),
        provenance="ablation",
        source=SOURCE,
        summary="AER without its allocation: every trajectory gets alpha",
        watch="aer/entropy comes down to aer/target and stays; aer/saturated_steps stays 0",
    )


@register_method("aer_absolute_target")
def aer_absolute_target() -> Method:
    """w(q) = max(0, rho - g)/rho, H* a constant, alpha += ki*(H* - H_t), clipped. AER without its anchor."""
    return Method(
        allocation=Difficulty(),
        measure=Full(),
        target=Absolute(),
        controller=PI(),
        provenance="ablation",
        source=SOURCE,
        summary="AER with a given level of nats in place of tau * H0",
        watch="aer/entropy against aer/target, which does not follow the model; aer/saturated_steps stays 0",
    )
