"""Show the warnings of this package in a run's log.

Importing vLLM in the driver's task sets the root logger and its handler to ERROR, which would hide our warnings.
"""

from __future__ import annotations

import logging


class Unseen(logging.Filter):
    """Pass the records that no handler of the root logger shows."""

    def filter(self, record: logging.LogRecord) -> bool:
        return all(handler.level > record.levelno for handler in logging.getLogger().handlers)


def show_warnings() -> None:
    """Give this package's logger a separate handler on stderr, once per process."""
    ours = logging.getLogger("verl_aer")
    if any(isinstance(entry, Unseen) for handler in ours.handlers for entry in handler.filters):
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[verl_aer] %(levelname)s: %(message)s"))
    handler.addFilter(Unseen())
    ours.addHandler(handler)
    ours.setLevel(logging.WARNING)
