"""The adaptations that ``import verl`` activates in a new process, with and without an accelerator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import verl_aer.cpu  # noqa: F401 - veRL first, see its docstring
from verl_aer.cpu.detection import accelerator_present

without_accelerator = pytest.mark.skipif(accelerator_present(), reason="this machine has an accelerator")


def import_verl_in_a_fresh_process(report: str, **environment: str) -> list[str]:
    """What ``report`` prints after ``import verl`` in a process with nothing but this environment changed."""
    names = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys, verl\n{report}"],
        env={**names, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()


REPORT = """
from verl.plugin.platform import PlatformRegistry, get_platform
from verl.utils.distributed import initialize_global_process_group_ray
print(type(get_platform()).__name__, "cpu" in PlatformRegistry.registered_names())
print(initialize_global_process_group_ray.__defaults__[1])
print(*(name for name in sys.modules if name.startswith("verl_aer.cpu.")))
"""


def test_not_one_line_is_active_beside_an_accelerator(tmp_path: Path):
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\nexit 0\n")
    nvidia_smi.chmod(0o755)
    platform, cpu_registered, backend, *modules = import_verl_in_a_fresh_process(
        REPORT, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    )
    assert (platform, cpu_registered, backend) == ("PlatformCUDA", "False", "None")
    assert modules == ["verl_aer.cpu.detection"]


@without_accelerator
def test_without_an_accelerator_verl_finds_our_platform_by_itself():
    platform, cpu_registered, backend, *modules = import_verl_in_a_fresh_process(REPORT)
    assert (platform, cpu_registered, backend) == ("CPUPlatform", "True", "cpu:gloo")
    loaded = {name.removeprefix("verl_aer.cpu.") for name in modules}
    # vLLM takes seconds to import: the server and the worker are for the processes that run it.
    assert {"platform", "packages", "process_group", "registrations"} <= loaded
    assert not {"server", "worker"} & loaded


@without_accelerator
@pytest.mark.parametrize("first", ["verl_aer.cpu.platform", "verl_aer.integration.watchdog"])
def test_any_of_our_modules_may_be_the_first_to_import_verl(first):
    # veRL loads the plug-in in the middle of that import, and would only log a failure at DEBUG.
    report = "import verl_aer.cpu.platform as p; from verl.plugin.platform import get_platform\n"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import {first}\n{report}print(type(get_platform()) is p.CPUPlatform)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["True"]
    assert "could not be loaded" not in result.stderr
