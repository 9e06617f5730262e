"""Skywork-OR1: a coefficient that moves by constant steps towards a fixed entropy level (arXiv 2505.22312)."""

from __future__ import annotations

from verl_aer.methods.base import Method, register_method
from verl_aer.parts.allocation import Uniform
from verl_aer.parts.controller import Sign
from verl_aer.parts.measure import Full, Sampled
from verl_aer.parts.target import Absolute


@register_method("skywork")
def skywork() -> Method:
    """c += step_size if H^ < target else -step_size, clipped; alpha = c where H^ < target, else 0. Skywork-OR1's rule.

    H^ is the mean of -log pi_old of the sampled tokens; it controls alpha. The loss pushes the entropy of the whole
    vocabulary: L = L_policy - alpha * mean(H). The released scripts train one mini-batch per step, in which the
    gradient of -log pi of the sampled tokens is zero in expectation. Source: arXiv 2505.22312 and its released code;
    the defaults are those of its scripts. As there, coefficient and gate are computed at the end of a step and applied
    in the next one.
    """
    return Method(
        allocation=Uniform(),
        measure=Sampled(),
        pushed=Full(),
        target=Absolute(),
        controller=Sign(),
        provenance="published",
        source="arXiv 2505.22312",
        summary="Skywork-OR1: the coefficient steps up below the target in nats, and is not applied above it",
        differences="The coefficient is saved with each checkpoint; the authors' code does not save it.",
        watch="aer/entropy falls to aer/target; aer/alpha is 0 after each step above the target",
    )
