"""What veRL loads on ``import verl``: the entry point ``verl_aer`` in the group ``verl.plugins``.

Importing this module activates the CPU platform where there is no accelerator, and registers our trainers and engines
as soon as veRL's own are there.
"""

import logging

from verl_aer.after_import import after_import

logger = logging.getLogger(__name__)


def register_trainers() -> None:
    # Not above: a dozen processes of a run load this plug-in, and only the driver's task needs the trainers.
    from verl_aer.integration import trainer  # noqa: F401


def register_engines() -> None:
    from verl_aer.integration.engine import register_entropy_engines

    register_entropy_engines()


try:
    from verl_aer import cpu

    cpu.install()
    after_import("verl.trainer.ppo.v1", register_trainers)
    after_import("verl.workers.engine.fsdp.transformer_impl", register_engines)
except Exception:
    # veRL logs a plug-in that fails to load at DEBUG and goes on; the user would only ever see
    # "Unknown trainer 'aer_sync'".
    logger.exception("verl_aer could not be loaded into veRL; run `verl-aer doctor`")
    raise
