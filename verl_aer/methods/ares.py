"""ARES: a reward for stretches of high entropy, by difficulty (arXiv 2510.08457)."""

from __future__ import annotations

from dataclasses import replace

from verl_aer.methods.base import Method, register_method
from verl_aer.methods.baselines import none
from verl_aer.parts.regularizer import NoRegularizer
from verl_aer.parts.reward_shaping import Ares


@register_method("ares")
def ares() -> Method:
    """R' = R + s_b(N): fewer stretches of high entropy on easy prompts, more on hard ones. ARES."""
    return replace(
        none(),
        regularizer=NoRegularizer(),
        reward_shaping=Ares(),
        provenance="published",
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
