"""veRL's platform "cpu", which uses the processor and memory of the host as its device."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from verl_aer.cpu.detection import CPU_PLATFORM, accelerator_present

# By default vLLM takes a share of the whole memory for the KV cache, once per replica.
ROLLOUT_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # By default vLLM pins its threads to cores. Replicas and training workers alternate on the same few cores, and
    # all replicas would choose the same ones.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # On a CPU vLLM starts a separate worker process for the engine unless this is off. The process is only needed
    # for pinning threads, which is off too.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


class CPUDevice(ModuleType):
    """``torch.cpu`` with the memory and random-number functions that veRL calls on a device module.

    "Device memory" is the memory of this process: the resident size for allocated and reserved, with the kernel's
    peaks. So ``perf/max_memory_allocated_gb`` is the peak resident size of the worker in GiB.
    """

    def __init__(self) -> None:
        super().__init__("verl_aer.cpu.device", doc=type(self).__doc__)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    @staticmethod
    def memory_allocated(device: Any = None) -> int:
        """Return the resident size of this process in bytes."""
        return psutil.Process().memory_info().rss

    memory_reserved = memory_allocated

    @staticmethod
    def max_memory_allocated(device: Any = None) -> int:
        """Return the peak resident size of this process in bytes (Linux counts ``ru_maxrss`` in KiB)."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    max_memory_reserved = max_memory_allocated

    @staticmethod
    def mem_get_info(device: Any = None) -> tuple[int, int]:
        """Return (free, total) memory of the host in bytes."""
        memory = psutil.virtual_memory()
        return memory.free, memory.total

    @staticmethod
    def empty_cache() -> None:
        """Do nothing: the C allocator manages the memory."""

    @staticmethod
    def ipc_collect() -> None:
        """Do nothing: no memory is shared by handle."""

    @staticmethod
    def reset_peak_memory_stats(device: Any = None) -> None:
        """Do nothing: the kernel's peak cannot be reset."""

    @staticmethod
    def reset_accumulated_memory_stats(device: Any = None) -> None:
        """Do nothing: there are no counters."""

    @staticmethod
    def get_device_name(device: Any = None) -> str:
        """Return the name under which veRL looks up the peak FLOPS, which it does not know for CPUs."""
        return "CPU"

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        """Return the state of torch's CPU generator, (bytes,) uint8."""
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        """Restore torch's CPU generator."""
        torch.set_rng_state(state)

    manual_seed = staticmethod(torch.manual_seed)
    manual_seed_all = staticmethod(torch.manual_seed)


class CPUPlatform(PlatformBase):
    """veRL's platform for hosts without an accelerator: device "cpu", gloo, weights through shared memory."""

    _device = CPUDevice()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return self._device

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # veRL queries the platforms in the order of registration. Ours must only be chosen last.
        return not accelerator_present()

    def current_device(self) -> torch.device:
        # Not an index: veRL passes the result to `tensor.to`, where 0 means the first accelerator.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        # veRL's resource check counts only "GPU" and "NPU". On this platform a GPU is a slot for one rank, and Ray is
        # started with as many as the run has ranks.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def rollout_env_vars(self) -> dict[str, str]:
        return {name: os.environ.get(name, default) for name, default in ROLLOUT_ENVIRONMENT.items()}

    def is_ipc_supported(self) -> bool:
        return False

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def cudart(self) -> None:
        return None


def register_cpu_platform() -> None:
    """Register the platform "cpu".

    Symptom: ``ValueError: Unknown platform 'cpu'``, or NVIDIA is chosen by default.

    veRL falls back to NVIDIA if no platform is available (``platform_manager._detect_platform_name``).
    """
    PlatformRegistry.register(CPU_PLATFORM)(CPUPlatform)
