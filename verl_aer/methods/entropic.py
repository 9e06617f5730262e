"""EntroPIC: a PI controller that reweights the advantages of confident tokens (arXiv 2511.15248)."""

from __future__ import annotations

from dataclasses import replace

from verl_aer.methods.base import Method, register_method
from verl_aer.methods.baselines import none
from verl_aer.parts.advantage_shaping import Signed
from verl_aer.parts.controller import PI
from verl_aer.parts.regularizer import NoRegularizer
from verl_aer.parts.target import Absolute


@register_method("entropic")
def entropic() -> Method:
    """A' = A - alpha |A| where pi > 0.95, alpha = K_p (H* - H_t) + K_i sum_s (H* - H_s) within [-1, 1]. EntroPIC."""
    return replace(
        none(),
        target=Absolute(entropy=0.1),
        controller=PI(ki=0.01, kp=1.0, alpha_min=-1.0, alpha_max=1.0),
        regularizer=NoRegularizer(),
        advantage_shaping=Signed(),
        provenance="published",
        source="arXiv 2511.15248",
        summary="EntroPIC: a PI controller reweights good and bad tokens among those that the policy was sure of",
        watch="aer/entropy reaches aer/target; aer/alpha is positive while it is below; aer/saturated_steps stays 0",
        differences=(
            "As the authors' code, whose coefficient is -alpha. There the controller moves once per micro-batch and "
            "rank, the integral has no bound, and the extra term is separate: it is not clipped with the ratio, and "
            "it is averaged over only the confident tokens. Here it is part of the advantage."
        ),
    )
