"""Methods that hold the entropy at a level of nats, without difficulty and without an anchor."""

from __future__ import annotations

from verl_aer.methods.base import Method, register_method
from verl_aer.parts.allocation import Uniform
from verl_aer.parts.controller import Sign
from verl_aer.parts.measure import Full, Sampled
from verl_aer.parts.target import Absolute


@register_method("skywork")
def skywork() -> Method:
    """c += step_size if H^ < target else -step_size, clipped; alpha = c where H^ < target, else 0. Skywork-OR1's rule.

    H^ is the mean of -log pi_old of the sampled tokens, and decides alpha; the loss pushes the entropy of the whole
    vocabulary: L = L_policy - alpha * mean(H). The scripts train one mini-batch a step, where -log pi of the sampled
    tokens would have no gradient in expectation. Source: arXiv 2505.22312 and its released code, whose scripts' values
    are the defaults here. As there, coefficient and gate are decided at the end of a step and applied to the next.
    """
    return Method(
        allocation=Uniform(),
        measure=Sampled(),
        pushed=Full(),
        target=Absolute(),
        controller=Sign(),
        provenance="published",
        source="arXiv 2505.22312",
        summary="Skywork-OR1: the coefficient steps up below a level of nats, and is withheld above it",
        differences="The coefficient is saved with each checkpoint; the authors' code does not save it.",
        watch="aer/entropy falls to aer/target; aer/alpha is 0 in the steps after one above it",
    )
