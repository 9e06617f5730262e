"""Baselines on the code path of all methods, so that a comparison changes only one thing."""

from __future__ import annotations

from verl_aer.methods.base import Method, register_method
from verl_aer.parts.allocation import Uniform
from verl_aer.parts.controller import Fixed
from verl_aer.parts.measure import Full
from verl_aer.parts.target import NoTarget


@register_method("fixed")
def fixed() -> Method:
    """L = L_policy - coefficient * agg(H), agg the mode of the policy loss, as veRL's ``actor.entropy_coeff``."""
    return Method(
        allocation=Uniform(),
        measure=Full(),
        target=NoTarget(),
        controller=Fixed(),
        provenance="baseline",
        source="veRL 0.9.1, actor.entropy_coeff",
        summary="a constant entropy bonus for every trajectory, equal to veRL's entropy_coeff",
        aggregation="same_as_policy_loss",
        watch="aer/entropy, which collapses or explodes if the coefficient does not fit",
    )


@register_method("none")
def none() -> Method:
    """L = L_policy. Logs the metrics of the other methods and changes nothing."""
    return Method(
        allocation=Uniform(),
        measure=Full(),
        target=NoTarget(),
        controller=Fixed(coefficient=0.0),
        provenance="baseline",
        source="veRL 0.9.1",
        summary="no entropy bonus: plain veRL with this package's metrics",
        watch="aer/entropy, which falls without regularization",
    )
