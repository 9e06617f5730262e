"""Warnings of this package in the driver's task, after vLLM's import has silenced the root logger."""

from __future__ import annotations

import pytest

from tests.integration.test_stock_verl import run_for_stderr

WARN = """
import logging, sys
import verl
from verl_aer.integration.visible_log import show_warnings
level = int(sys.argv[1])
logging.getLogger().setLevel(level)
for handler in logging.getLogger().handlers:
    handler.setLevel(level)
show_warnings()
show_warnings()
logging.getLogger("verl_aer.integration.trainer").warning("step %d: look at this", 3)
logging.getLogger("verl_aer.control.loop").error("and at that")
logging.getLogger("another").warning("not ours")
"""


@pytest.mark.parametrize("level", [30, 40])
def test_each_of_our_messages_is_shown_once_whatever_the_root_logger_shows(level):
    shown = run_for_stderr(["-c", WARN, str(level)])
    assert shown.count("step 3: look at this") == 1
    assert shown.count("and at that") == 1
    assert ("[verl_aer] WARNING: step 3: look at this" in shown) is (level == 40)
    assert shown.count("not ours") == (level == 30)
