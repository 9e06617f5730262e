"""CEEH, "compress the easy, explore the hard" (arXiv 2602.22642), in both variants."""

from __future__ import annotations

from dataclasses import replace

from verl_aer.methods.base import Method, register_method
from verl_aer.parts.advantage_shaping import EntropyBonus
from verl_aer.parts.allocation import Historical
from verl_aer.parts.controller import Fixed, Schedule
from verl_aer.parts.measure import Full, Sampled
from verl_aer.parts.regularizer import NoRegularizer
from verl_aer.parts.reward_shaping import Length
from verl_aer.parts.target import NoTarget

_VERL = {"algorithm.norm_adv_by_std_in_grpo": False}


@register_method("ceeh_me")
def ceeh_me() -> Method:
    """L = L_policy - lambda_0 cos(pi t/T) * mean(w(x) H^), w = 5 where Acc_h(x) < mean Acc_h, else 1. CEEH-ME.

    H^ is -log pi of the sampled tokens. Once the accuracy on a question improves, its correct answers are discouraged
    from getting longer: R = R_acc - beta * clip((len - L_x)/L_x, -0.9, 1). As printed in the paper, the cosine is
    negative in the second half, and the term is then a penalty on entropy; entropy.controller.shape=cos_half is
    possibly the intended form. Advantages are not divided by the group's standard deviation. The term acts only
    off-policy, because the gradient of H^ is zero in expectation on-policy. The paper uses 16 mini-batches per step;
    with a single one set entropy/pushed=full.
    """
    return Method(
        allocation=Historical(),
        measure=Sampled(),
        target=NoTarget(),
        controller=Schedule(),
        reward_shaping=Length(),
        provenance="published",
        source="arXiv 2602.22642",
        summary="CEEH-ME: five times the bonus for questions below the average, shorter answers to improved ones",
        verl=_VERL,
        watch="aer/alpha follows its cosine, negative in the second half; response_length/mean; aer/reward_change",
        differences=(
            "Based on the paper's text; we did not read the authors' code. Acc_h starts at the first accuracy and "
            "includes the current step. L_x is that of earlier steps. The mean of Acc_h is over the questions seen. "
            "The pushed measure is -log pi of the sampled token, as in the paper's text; in the first mini-batch of a "
            "step its gradient is zero in expectation."
        ),
    )


@register_method("ceeh_ea")
def ceeh_ea() -> Method:
    """A' = A + min(a * H, |A| / kappa) where Acc_h(x) < mean Acc_h, else A' = A: CEEH-EA, no entropy term.

    The reward shaping and the advantage normalization are those of CEEH-ME. The bonus is that of arXiv 2506.14758. a
    and kappa are not in the CEEH paper; they come from public ports of arXiv 2506.14758.
    """
    return replace(
        ceeh_me(),
        allocation=Historical(hard_weight=1.0, easy_weight=0.0),
        measure=Full(),
        controller=Fixed(coefficient=0.0),
        regularizer=NoRegularizer(),
        advantage_shaping=EntropyBonus(),
        summary="CEEH-EA: an advantage bonus on uncertain tokens of questions below the average",
        watch="aer/advantage_change is positive; aer/weight/nonzero_frac is the share of shaped questions",
        differences=(
            "As ceeh_me. a and kappa are those of other projects. H is that of the policy of the old log-probs. The "
            "bonus is added once per step; the ports add it again in every epoch, to advantages that already have it."
        ),
    )
