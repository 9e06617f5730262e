"""Our interpretation of AER, Adaptive Entropy Regularization (arXiv 2510.10959), and its ablations.

    w(q)        = max(0, rho - g(q)) / rho                               difficulty-aware allocation
    H*          = tau * H0                                               initial-anchored target
    alpha_{t+1} = clip(alpha_t + ki * (H* - H_t), alpha_min, alpha_max)  dynamic global coefficient
    L           = L_policy - (1/N_tokens) sum_{i,t} m_{i,t} * alpha * w(q_i) * H_{i,t}

If few prompts are below rho, a floor applies to the mean weight and a ceiling to each prompt's entropy; see
``Difficulty``. The paper's three parts are known. The exact map, rho, ki, the bounds and the aggregation are not
known, so each is a named option, and this is an interpretation and not a reproduction. With tau < 1 and
alpha_init = 0, alpha stays 0 until the entropy has fallen below tau * H0.
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
            "The paper's three parts are known, but not its formulas. The map, rho, ki, the bounds, the aggregation "
            "and kp are ours, each a named option. The floor of the mean weight and the ceiling of a prompt's entropy "
            "are also ours; they act if few prompts are below rho. tau = 0.4 is reported second-hand."
        ),
        watch="aer/entropy falls to aer/target and stays there; aer/saturated_steps stays 0; aer/weight/nonzero_frac",
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
        watch="aer/entropy, which is not controlled; aer/entropy/hard compared with aer/entropy/easy",
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
        watch="aer/entropy falls to aer/target and stays there; aer/saturated_steps stays 0",
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
        summary="AER with a fixed entropy target in nats instead of tau * H0",
        watch="aer/entropy compared with aer/target, which does not depend on the model; aer/saturated_steps stays 0",
    )
