"""AEnt: clamped entropy, and a controller that does not move inside a band (arXiv 2509.03493)."""

from __future__ import annotations

from verl_aer.methods.base import Method, register_method
from verl_aer.parts.allocation import Uniform
from verl_aer.parts.controller import PI
from verl_aer.parts.measure import Clamped
from verl_aer.parts.target import Band


@register_method("aent")
def aent() -> Method:
    """L = L_policy - alpha * mean(H~), alpha -= ki * [min(0, H~ - low) + max(0, H~ - high)], clipped. AEnt.

    H~ is the clamped entropy, both measured and pushed. The defaults are those of the dataclass in the authors' code,
    except that the controller is on: there it is off by default. entropy.controller.ki=0 keeps alpha at its initial
    value. The GSM8K example of that code uses p = 0.4, the band [0.05, 0.23], an initial alpha of 2e-4 within
    [1e-5, 3e-3] and 29 steps of warm-up. It counts steps from 0; here this is entropy.controller.warmup_steps=30.
    """
    return Method(
        allocation=Uniform(),
        measure=Clamped(),
        target=Band(),
        controller=PI(ki=1e-3, alpha_init=1e-3, alpha_min=1e-5, alpha_max=1e-2),
        provenance="published",
        source="arXiv 2509.03493",
        summary="AEnt: entropy without the least likely tokens, kept in a band",
        differences=(
            "The controller is on; the authors' example leaves it off. It moves once per step by the entropy of all "
            "tokens, and its state is saved. The same number of tokens is excluded; of equal logits, the lower index "
            "is excluded first, whereas the code uses the order of torch.topk."
        ),
        watch="aer/entropy, here the clamped one, stays in the band; aer/alpha does not move while it is in the band",
    )
