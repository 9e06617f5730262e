"""CEEH, "compress the easy, explore the hard" (arXiv 2602.22642): both of its forms."""

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

    H^ is -log pi of the sampled tokens. Correct answers to questions that go better than before are asked to get no
    longer: R = R_acc - beta * clip((len - L_x)/L_x, -0.9, 1). As the paper prints it the cosine is negative in the
    second half, and the term then a penalty on entropy; entropy.controller.shape=cos_half is what may have been meant.
    Advantages are not divided by the group's standard deviation. The term acts off-policy only: while the policy is the
    one that sampled, the gradient of H^ is zero in expectation. The paper has 16 mini-batches a step; with a single one
    set entropy/pushed=full.
    """
    return Method(
        allocation=Historical(),
        measure=Sampled(),
        target=NoTarget(),
        controller=Schedule(),
        reward_shaping=Length(),
        provenance="published",
        source="arXiv 2602.22642",
        summary="CEEH-ME: five times the entropy for questions below the average, shorter answers to solved ones",
        verl=_VERL,
        watch="aer/alpha follows its cosine, below 0 in the second half; response_length/mean; aer/reward_change",
        differences=(
            "The paper's text, not the authors' code, which we did not read. Acc_h starts at the first accuracy, and "
            "includes the step's own; L_x is that of the steps before. The mean of Acc_h is over the questions seen. "
            "Pushed is -log pi of the sampled token, as in the paper's text: in the first mini-batch of a step it has "
            "no gradient in expectation."
        ),
    )


@register_method("ceeh_ea")
def ceeh_ea() -> Method:
    """A' = A + min(a * H, |A| / kappa) where Acc_h(x) < mean Acc_h, else A' = A: CEEH-EA, no entropy term.

    Rewards and advantages are those of CEEH-ME. a and kappa are not in the paper: they are those of public ports of
    arXiv 2506.14758, whose shaping it is.
    """
    return replace(
        ceeh_me(),
        allocation=Historical(hard_weight=1.0, easy_weight=0.0),
        measure=Full(),
        controller=Fixed(coefficient=0.0),
        regularizer=NoRegularizer(),
        advantage_shaping=EntropyBonus(),
        summary="CEEH-EA: a bonus on the advantage of uncertain tokens of questions below the average",
        watch="aer/advantage_change above 0; aer/weight/nonzero_frac: the questions that are shaped",
        differences=(
            "As ceeh_me. a and kappa are those of other projects. H is of the policy of the old log-probs, and the sum "
            "is taken once a step: ports add it in every epoch, to advantages that already have it."
        ),
    )
