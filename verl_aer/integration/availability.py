"""What the plug-in offers to veRL, and whether it can: trainer names, supported versions, failures."""

from __future__ import annotations

import verl
from packaging.version import Version

from verl_aer._import_hooks import failures
from verl_aer.errors import VerlAerError

TRAINER_MODES = {
    "aer_sync": "sync",
    "aer_colocate_async": "colocate_async",
    "aer_separate_async": "separate_async",
}
"""The names under which our trainers are registered, and veRL's own trainer mode behind each."""

VERL_FROM, VERL_BELOW = "0.9.1", "0.10"
"""Supported versions of veRL. A development version of the upper one comes before it and is let in."""


class PluginError(VerlAerError, RuntimeError):
    """verl_aer cannot work in this process; the message says why and what to do."""


def require_supported_verl() -> None:
    """Raise PluginError for a version of veRL that this package was not written for."""
    if not Version(VERL_FROM) <= Version(verl.__version__) < Version(VERL_BELOW):
        raise PluginError(
            f"verl_aer works with veRL from {VERL_FROM} to below {VERL_BELOW}, and {verl.__version__} is installed: "
            f"pip install 'verl>={VERL_FROM},<{VERL_BELOW}', or a verl_aer for this veRL"
        )


def require_plugin() -> None:
    """Raise PluginError with everything that failed in this process; call it after importing veRL's trainers."""
    if failures:
        raise plugin_error()


def plugin_error() -> PluginError:
    """Build the error that lists everything that failed in this process."""
    return PluginError(f"verl_aer is not available: {'; '.join(failures)}")
