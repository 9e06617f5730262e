"""Trainer names, supported veRL versions and the errors of a plug-in that failed to load."""

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
"""Name of each of our trainers, with the trainer mode of veRL that it extends."""

VERL_FROM, VERL_BELOW = "0.9.1", "0.10"
"""Supported versions of veRL. Development versions of the upper bound sort below it and are accepted."""


class PluginError(VerlAerError, RuntimeError):
    """verl_aer cannot work in this process. The message gives the cause and the fix."""


def require_supported_verl() -> None:
    """Raise PluginError for an unsupported version of veRL."""
    if not Version(VERL_FROM) <= Version(verl.__version__) < Version(VERL_BELOW):
        raise PluginError(
            f"verl_aer supports veRL {VERL_FROM} to below {VERL_BELOW}, and {verl.__version__} is installed: "
            f"pip install 'verl>={VERL_FROM},<{VERL_BELOW}', or install a verl_aer for this veRL"
        )


def require_plugin() -> None:
    """Raise PluginError with every failure in this process. Call it after importing veRL's trainers."""
    if failures:
        raise plugin_error()


def plugin_error() -> PluginError:
    """Build the error that lists every failure in this process."""
    return PluginError(f"verl_aer is not available: {'; '.join(failures)}")
