"""What veRL loads on ``import verl``: the entry point ``verl_aer`` in the group ``verl.plugins``.

Importing this module activates the CPU platform where there is no accelerator. It registers our trainers as soon as
veRL's own are there, and our presets as soon as Hydra is. It replaces no class of veRL's: our trainer installs its
engine on the workers of its run.

Nothing here fails an import of veRL's. What does not work is logged at ERROR once per process, and raised only where
our part is asked for: by an ``aer_...`` trainer, by the checks before a run and by ``verl-aer doctor``.
"""

from __future__ import annotations

from typing import Any, NoReturn

import verl
from packaging.version import Version

from verl_aer._import_hooks import after_import, attempt, failures
from verl_aer.errors import VerlAerError
from verl_aer.integration.modes import TRAINER_MODES

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
        raise _plugin_error()


def _plugin_error() -> PluginError:
    return PluginError(f"verl_aer is not available: {'; '.join(failures)}")


def register_trainers() -> None:
    if failures:
        _register_unavailable_trainers()
        return
    # Not above: a dozen processes of a run load this plug-in, and only the driver's task needs the trainers.
    try:
        from verl_aer.integration import trainer  # noqa: F401
    except Exception:
        _register_unavailable_trainers()
        raise


def _register_unavailable_trainers() -> None:
    """Let the names of our trainers lead to the reason why they are not there, and not to "Unknown trainer"."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, register_trainer

    class UnavailableTrainer(PPOTrainer):
        def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
            raise _plugin_error()

    for name in sorted(TRAINER_MODES.keys() - TRAINER_REGISTRY.keys()):
        register_trainer(name)(UnavailableTrainer)


def install() -> None:
    """Become a CPU process of veRL where there is no accelerator."""
    require_supported_verl()
    from verl_aer import cpu

    cpu.install()


def install_presets() -> None:
    """Let Hydra find the methods and parts as config groups."""
    from verl_aer.config import search_path

    search_path.install()


attempt(install)
after_import("verl.trainer.ppo.v1", register_trainers)
after_import("hydra", install_presets)
