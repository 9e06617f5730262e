"""Methods that act on advantages or rewards, without an entropy term in the loss."""

from __future__ import annotations

from dataclasses import replace

from verl_aer.advantage_shaping import Signed, Steer
from verl_aer.controller import ProportionalIntegral
from verl_aer.methods.baselines import none
from verl_aer.methods.registry import Method, register_method
from verl_aer.penalty import NoPenalty
from verl_aer.reward_shaping import Ares
from verl_aer.target import Absolute


@register_method("steer")
def steer() -> Method:
    """A' = w(Omega) A, Omega = A (1 - pi)(log pi + H): less for tokens that would move the entropy most. STEER."""
    return replace(
        none(),
        penalty=NoPenalty(),
        advantage_shaping=Steer(),
        standing="published",
        source="arXiv 2510.10150",
        summary="STEER: tokens whose update would change the entropy much count for less",
        watch="aer/advantage_change; aer/entropy falls more slowly than with none",
        differences=(
            "pi is that of the old log-probs and not of the policy in training; least and greatest Omega are those of "
            "the step and not of a micro-batch. Both are the same where a step is one micro-batch."
        ),
    )


@register_method("ares")
def ares() -> Method:
    """R' = R + s_b(N): fewer stretches of high entropy on easy prompts, more on hard ones. ARES."""
    return replace(
        none(),
        penalty=NoPenalty(),
        reward_shaping=Ares(),
        standing="published",
        source="arXiv 2510.08457",
        summary="ARES: rewards fewer stretches of high entropy on easy prompts and more on hard ones",
        watch="aer/reward_change; response_length/mean by difficulty",
        differences=(
            "The authors' code with three differences: all tokens may begin a stretch, not those of a list of English "
            "words; a bucket's target is the running mean of the steps before, not the mean of the same batch, against "
            "which its gain can never move; the reward is shaped after the difficulty is known. Entropies are those of "
            "the whole vocabulary. The dynamic KL coefficients by bucket are left out: veRL's KL loss has one."
        ),
    )


@register_method("entropic")
def entropic() -> Method:
    """A' = A - alpha |A| where pi > 0.95, alpha = K_p (H* - H_t) + K_i sum_s (H* - H_s) within [-1, 1]. EntroPIC."""
    return replace(
        none(),
        target=Absolute(entropy=0.1),
        controller=ProportionalIntegral(),
        penalty=NoPenalty(),
        advantage_shaping=Signed(),
        standing="published",
        source="arXiv 2511.15248",
        summary="EntroPIC: a PI controller weighs good against bad tokens among those that the policy was sure of",
        watch="aer/entropy comes to aer/target; aer/alpha above 0 while it is below; aer/saturated_steps stays 0",
        differences=(
            "As the authors' code, which names -alpha. There the controller moves once a micro-batch and rank, the "
            "integral has no bound, and the extra term is neither clipped with the ratio nor averaged over other than "
            "the sure tokens; here it is part of the advantage."
        ),
    )
