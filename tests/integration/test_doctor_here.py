"""The doctor with the whole stack installed."""

from __future__ import annotations

import pytest

from verl_aer.launch.doctor import FAIL, machine_checks

pytest.importorskip("verl")


def test_nothing_fails_where_the_tests_run() -> None:
    checks = machine_checks()
    assert [check for check in checks if check.status == FAIL] == []
    assert {"torch", "verl", "import verl", "plug-in", "hydra configs", "vllm"} <= {check.name for check in checks}
