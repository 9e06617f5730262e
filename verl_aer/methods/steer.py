"""STEER: token-level reweighting by the change of entropy that an update would cause (arXiv 2510.10150)."""

from __future__ import annotations

from dataclasses import replace

from verl_aer.methods.base import Method, register_method
from verl_aer.methods.baselines import none
from verl_aer.parts.advantage_shaping import Steer
from verl_aer.parts.regularizer import NoRegularizer


@register_method("steer")
def steer() -> Method:
    """A' = w(Omega) A, Omega = A (1 - pi)(log pi + H): less for tokens that would move the entropy most. STEER."""
    return replace(
        none(),
        regularizer=NoRegularizer(),
        advantage_shaping=Steer(),
        provenance="published",
        source="arXiv 2510.10150",
        summary="STEER: tokens whose update would change the entropy much count for less",
        watch="aer/advantage_change; aer/entropy falls more slowly than with none",
        differences=(
            "pi is that of the old log-probs and not of the policy in training; least and greatest Omega are those of "
            "the step and not of a micro-batch. Both are the same where a step is one micro-batch."
        ),
    )
