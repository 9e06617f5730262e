"""veRL's device "cpu"."""

from __future__ import annotations

import numpy as np
import torch

import verl_aer.cpu  # noqa: F401 - veRL first, see its docstring
from verl_aer.cpu.platform import CPUDevice, CPUPlatform


def test_device_memory_is_the_memory_of_this_process():
    before = CPUDevice.memory_allocated()
    mebibytes = 64
    block = np.ones(mebibytes * 2**20, dtype=np.uint8)
    grown = CPUDevice.memory_allocated() - before
    # Everything else in this process may move a little in the meantime.
    assert (mebibytes - 8) * 2**20 < grown < (mebibytes + 8) * 2**20
    assert CPUDevice.max_memory_allocated() >= CPUDevice.memory_allocated() - 8 * 2**20
    del block


def test_free_memory_is_part_of_the_total():
    free, total = CPUDevice.mem_get_info()
    assert 0 < free < total


def test_a_restored_generator_repeats_its_numbers():
    device = CPUDevice()
    state = device.get_rng_state()
    first = torch.rand(3)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_what_torch_cpu_has_is_left_to_torch_cpu():
    assert CPUDevice().current_stream is torch.cpu.current_stream


def test_a_tensor_stays_on_the_cpu_when_verl_moves_it_to_the_current_device():
    # veRL passes current_device() to Tensor.to; an index would mean an accelerator.
    tensor = torch.ones(2)
    assert tensor.to(CPUPlatform().current_device()) is tensor


def test_a_rank_reserves_a_logical_gpu_and_weights_travel_without_device_handles():
    platform = CPUPlatform()
    assert platform.ray_resource_options(1) == {"num_gpus": 1}
    assert not platform.is_ipc_supported()


def test_the_users_environment_wins_for_the_rollout_servers(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    variables = CPUPlatform().rollout_env_vars()
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
