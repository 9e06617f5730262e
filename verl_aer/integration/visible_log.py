"""Warnings of this package are seen in a run's log, whatever veRL's and vLLM's imports do to the root logger.

Importing vLLM in the driver's task leaves the root logger and its handler at ERROR: without this, no warning of ours
would reach the screen.
"""

from __future__ import annotations

import logging


class Unseen(logging.Filter):
    """Passes records that no handler of the root logger shows."""

    def filter(self, record: logging.LogRecord) -> bool:
        return all(handler.level > record.levelno for handler in logging.getLogger().handlers)


def show_warnings() -> None:
    """Give this package's logger its own handler on stderr, once per process."""
    ours = logging.getLogger("verl_aer")
    if any(isinstance(entry, Unseen) for handler in ours.handlers for entry in handler.filters):
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[verl_aer] %(levelname)s: %(message)s"))
    handler.addFilter(Unseen())
    ours.addHandler(handler)
    ours.setLevel(logging.WARNING)
