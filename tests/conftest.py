"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_temp_dir():
    """A short path: the names of Ray's sockets below it must stay under 108 characters."""
    folder = Path(tempfile.mkdtemp(prefix="aer", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
