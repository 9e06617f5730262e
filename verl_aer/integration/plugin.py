"""What veRL loads on ``import verl``: the entry point ``verl_aer`` in the group ``verl.plugins``.

Importing this module activates the CPU platform where there is no accelerator. It registers our trainers as soon as
veRL's own are there, and our presets as soon as Hydra is. It replaces no class of veRL's: our trainer installs its
engine on the workers of its run.

Nothing here fails an import of veRL's. What does not work is logged at ERROR once per process, and raised only where
our part is asked for: by an ``aer_...`` trainer, by the checks before a run and by ``verl-aer doctor``.
"""

from __future__ import annotations

from typing import Any, NoReturn

from verl_aer._import_hooks import after_import, attempt, failures
from verl_aer.integration.availability import TRAINER_MODES, plugin_error, require_supported_verl


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
            raise plugin_error()

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
