"""STEER: token weights by the entropy change that an update would cause (arXiv 2510.10150)."""

from __future__ import annotations

from dataclasses import replace

from verl_aer.methods.base import Method, register_method
from verl_aer.methods.baselines import none
from verl_aer.parts.advantage_shaping import Steer
from verl_aer.parts.regularizer import NoRegularizer


@register_method("steer")
def steer() -> Method:
    """A' = w(Omega) A, Omega = A (1 - pi)(log pi + H): smaller w if the entropy would change more. STEER."""
    return replace(
        none(),
        regularizer=NoRegularizer(),
        advantage_shaping=Steer(),
        provenance="published",
        source="arXiv 2510.10150",
        summary="STEER: tokens whose update would change the entropy more count less",
        watch="aer/advantage_change; aer/entropy falls more slowly than with the method none",
        differences=(
            "pi is that of the old log-probs and not of the policy in training. The smallest and largest |Omega| are "
            "those of the step and not of a micro-batch. Both agree with the code if a step is one micro-batch."
        ),
    )
