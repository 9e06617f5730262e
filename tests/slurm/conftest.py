"""One real Slurm for all tests of this folder that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.jobs import Jobs
from tests.slurm.real_slurm import Slurm, SlurmUnavailable, real_slurm


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    try:
        running = real_slurm()
        cluster = running.__enter__()
    except SlurmUnavailable as error:
        pytest.skip(f"no real Slurm here: {error}")
    yield cluster
    running.__exit__(None, None, None)


@pytest.fixture(scope="session")
def all_jobs(slurm) -> Jobs:
    return Jobs(slurm)


@pytest.fixture
def jobs(all_jobs) -> Iterator[Jobs]:
    """Submits jobs; those of a failed test are ended."""
    yield all_jobs
    all_jobs.clean()
