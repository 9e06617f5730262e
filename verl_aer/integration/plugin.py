"""The plug-in that veRL loads on ``import verl``: the entry point ``verl_aer`` in the group ``verl.plugins``.

Importing this module activates the CPU platform if there is no accelerator. It registers our trainers when veRL's
trainers are imported, and our presets when Hydra is. It replaces no class of veRL: our trainer installs its engine on
the workers of its run.

A failure here never breaks an import of veRL. It is logged at ERROR once per process, and raised only when our part is
used: by an ``aer_...`` trainer, by the checks before a run and by ``verl-aer doctor``.
"""

from __future__ import annotations

from typing import Any, NoReturn

from verl_aer._import_hooks import after_import, attempt, failures
from verl_aer.integration.availability import TRAINER_MODES, plugin_error, require_supported_verl


def register_trainers() -> None:
    if failures:
        _register_unavailable_trainers()
        return
    # Imported here: a dozen processes of a run load this plug-in, and only the driver's task needs the trainers.
    try:
        from verl_aer.integration import trainer  # noqa: F401
    except Exception:
        _register_unavailable_trainers()
        raise


def _register_unavailable_trainers() -> None:
    """Register our trainer names with a class that raises the cause of the failure, not "Unknown trainer"."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, register_trainer

    class UnavailableTrainer(PPOTrainer):
        def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
            raise plugin_error()

    for name in sorted(TRAINER_MODES.keys() - TRAINER_REGISTRY.keys()):
        register_trainer(name)(UnavailableTrainer)


def install() -> None:
    """Set up the CPU platform in this process if there is no accelerator."""
    require_supported_verl()
    from verl_aer import cpu

    cpu.install()


def install_presets() -> None:
    """Register the methods and parts as config groups of Hydra."""
    from verl_aer.config import search_path

    search_path.install()


attempt(install)
after_import("verl.trainer.ppo.v1", register_trainers)
after_import("hydra", install_presets)
