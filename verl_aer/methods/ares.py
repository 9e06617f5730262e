"""ARES: a reward for high-entropy windows, by difficulty (arXiv 2510.08457)."""

from __future__ import annotations

from dataclasses import replace

from verl_aer.methods.base import Method, register_method
from verl_aer.methods.baselines import none
from verl_aer.parts.regularizer import NoRegularizer
from verl_aer.parts.reward_shaping import Ares


@register_method("ares")
def ares() -> Method:
    """R' = R + s_b(N): fewer high-entropy windows on easy prompts, more on hard ones. ARES."""
    return replace(
        none(),
        regularizer=NoRegularizer(),
        reward_shaping=Ares(),
        provenance="published",
        source="arXiv 2510.08457",
        summary="ARES: rewards fewer high-entropy windows on easy prompts and more on hard ones",
        watch="aer/reward_change; response_length/mean by difficulty",
        differences=(
            "The authors' code with three differences. All tokens may begin a window; the code only counts those of a "
            "list of English words. A bucket's target is the running mean of earlier steps; the code takes the mean of "
            "the same batch, so that its gain never moves. The reward is shaped after the difficulty is known. "
            "Entropies are those of the whole vocabulary. The dynamic KL coefficients by bucket are left out because "
            "veRL's KL loss has a single one."
        ),
    )
