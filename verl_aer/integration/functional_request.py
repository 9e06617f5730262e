"""How the driver asks the workers for a functional other than the entropy of the whole vocabulary.

The batch names it, so that the same worker serves every method and both passes agree: the one without a gradient in
which the controlled entropy is measured, and the update in which it is pushed.
"""

from __future__ import annotations

import dataclasses
import json

from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_aer.functional import Functional
from verl_aer.methods.registry import get_part

FUNCTIONAL_KEY = "entropy_functional"
"""Batch-level text: the functional and its settings."""

DONE_KEY = "entropy_functional_done"
"""Batch-level mark of the engine that has computed it."""

BACKENDS = ("fsdp", "fsdp2")
"""Values of ``actor.strategy`` whose engine computes functionals of the logits."""


def request_of(functional: Functional) -> str | None:
    """What to put into a batch under ``FUNCTIONAL_KEY``; None where veRL's engine computes all that is needed.

    >>> from verl_aer.functional import Clamped, Full
    >>> request_of(Clamped(p=0.3)), request_of(Full())
    ('{"kind": "clamped", "p": 0.3}', None)
    """
    if functional.kind == "full" or functional.of_sample:
        return None
    return json.dumps({"kind": functional.kind, **dataclasses.asdict(functional)})


def requested_functional(data: TensorDict) -> Functional | None:
    """The functional that the batch asks for in the place of the entropy, or None."""
    request = tu.get_non_tensor_data(data=data, key=FUNCTIONAL_KEY, default=None)
    if request is None:
        return None
    settings = json.loads(request)
    return get_part("functional", settings.pop("kind"))(**settings)


def mark_done(data: TensorDict) -> None:
    """Say that the entropy of this micro-batch is the functional that it asked for."""
    tu.assign_non_tensor(data, **{DONE_KEY: True})


def require_done(data: TensorDict) -> None:
    """RuntimeError if a functional was asked for and an engine answered with the entropy of the whole vocabulary."""
    request = tu.get_non_tensor_data(data=data, key=FUNCTIONAL_KEY, default=None)
    if request is not None and not tu.get_non_tensor_data(data=data, key=DONE_KEY, default=False):
        raise RuntimeError(
            f"the training engine ignored the functional {request}: it is not veRL's FSDP engine as this package "
            "extends it. Set entropy.functional.kind=full, or actor_rollout_ref.actor.strategy to fsdp or fsdp2."
        )
