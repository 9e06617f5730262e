"""What veRL loads on ``import verl``: the entry point ``verl_aer`` in the group ``verl.plugins``.

Importing this module activates the CPU platform where there is no accelerator and registers our trainers.
"""

import logging

logger = logging.getLogger(__name__)

try:
    from verl_aer import cpu

    cpu.install()
    from verl_aer.integration import trainer  # noqa: F401 - registers the trainers
except Exception:
    # veRL logs a plug-in that fails to load at DEBUG and goes on; the user would only ever see
    # "Unknown trainer 'aer_sync'".
    logger.exception("verl_aer could not be loaded into veRL; run `verl-aer doctor`")
    raise
