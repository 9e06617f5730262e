"""Methods that hold the entropy at a level of nats, without difficulty and without an anchor."""

from __future__ import annotations

from verl_aer.allocation import Uniform
from verl_aer.controller import SignGated
from verl_aer.functional import Sampled
from verl_aer.methods.registry import Method, register_method
from verl_aer.target import Absolute


@register_method("skywork")
def skywork() -> Method:
    """c += delta if H^ < target else -delta, clipped; alpha = c where H^ < target, else 0. Skywork-OR1's rule.

    H^ is the mean of -log pi of the sampled tokens. Source: arXiv 2505.22312 and its released scripts, whose values
    are the defaults here. They apply the gate to the entropy of the step that trains; here, as everywhere in this
    package, a step trains with what was decided after the one before.
    """
    return Method(
        allocation=Uniform(),
        functional=Sampled(),
        target=Absolute(),
        controller=SignGated(),
        standing="published",
        source="arXiv 2505.22312",
        summary="Skywork-OR1: the coefficient steps up below a level of nats, and is withheld above it",
        differences="The gate is decided after a step and applied to the next; the coefficient is saved.",
        watch="aer/entropy falls to aer/target; aer/alpha is 0 in the steps after one above it",
    )
