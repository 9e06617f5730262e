"""Fixtures for several kinds of tests."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

REAL_STACK = ("tests/e2e/", "tests/integration/test_ray_jobs.py")


def pytest_configure() -> None:
    """Give each test process one thread: test tensors are small, and `make test` starts a process for each core."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests of the real stack, which take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(REAL_STACK))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of each file in one process, and all tests of the real stack in one: two stacks are too many."""
    from xdist.scheduler import LoadFileScheduling

    class OneRealStack(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "the real stack" if nodeid.startswith(REAL_STACK) else super()._split_scope(nodeid)

    return OneRealStack(config, log)


@pytest.fixture(scope="session")
def ray_temp_dir():
    """A short path: the names of Ray's sockets below it must stay under 108 characters."""
    folder = Path(tempfile.mkdtemp(prefix="aer", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
