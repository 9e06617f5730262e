"""Packages that only a part of this one needs: pip's extras."""

from __future__ import annotations

import importlib.util

from verl_aer.errors import VerlAerError

EXTRAS = {"math_verify": "math", "matplotlib": "plot"}
"""Module -> the extra that installs it."""


class MissingExtraError(VerlAerError, ImportError):
    """An optional package is needed and not installed; the message says how to install it."""


def require_extra(module: str, user: str) -> None:
    """Raise if an optional module is not installed. It is looked for, not imported.

    Args:
        module: a key of `EXTRAS`.
        user: what needs it.

    Raises:
        MissingExtraError: it is not there.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"{user} needs {module}: pip install 'verl_aer[{EXTRAS[module]}]'")


def require_vllm(user: str) -> None:
    """Raise if vLLM is not installed: its CPU build is a distribution of another name.

    Raises:
        MissingExtraError: it is not there.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(
            f"{user} needs vllm: pip install 'verl_aer[gpu]', or 'verl_aer[cpu]' on a machine without a GPU"
        )
