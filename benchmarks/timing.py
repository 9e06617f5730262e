"""Measure time and memory of calls on a CPU or a GPU, and format them as a table."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from verl_aer._tables import Table, as_markdown

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


class Cost(NamedTuple):
    """Seconds of each repeat, and peak bytes. After running out of memory, there are no seconds."""

    seconds: list[float]
    extra_bytes: int


def machine() -> str:
    """Describe the machine and the versions, for the header of a table."""
    here = torch.cuda.get_device_name() if GPU else f"{_cpu_name()}, {torch.get_num_threads()} threads"
    return ", ".join([here, *(f"{name} {_version(name)}" for name in ("torch", "triton", "verl", "flash-attn"))])


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def interleaved(calls: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Cost]:
    """Measure each call, which returns its seconds. An untimed first round measures memory."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    extra = dict.fromkeys(calls, 0)
    alive = []
    for name, call in calls.items():
        with suppress_out_of_memory(), peak_bytes() as peak:
            call()
            alive.append(name)
        extra[name] = peak[0]
    for _ in range(repeats):
        for name in alive:
            _collect()
            seconds[name].append(calls[name]())
    return {name: Cost(seconds[name], extra[name]) for name in calls}


@contextmanager
def suppress_out_of_memory() -> Iterator[None]:
    """Skip a call that runs out of memory. Its line has no numbers."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()


def timed(call: Callable[[], object]) -> float:
    """Measure the seconds of a call, including its work on the GPU."""
    if GPU:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """Measure the peak memory above the start, as [bytes]: the GPU allocator's, or the process's, sampled each ms."""
    _collect()
    found = [0]
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        try:
            yield found
        finally:
            found[0] = torch.cuda.max_memory_allocated() - start
        return
    over, start = threading.Event(), _resident()

    def sample() -> None:
        while not over.wait(0.001):
            found[0] = max(found[0], _resident() - start)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _resident() -> int:
    return psutil.Process().memory_info().rss


def _collect() -> None:
    """Free unused memory, so that a peak belongs to the call."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def table(costs: Mapping[str, Cost], base: str, wide: int, memory_name: str) -> str:
    """Format as Markdown: medians with spread, ratios to ``base``, and memory in multiples of ``wide`` bytes."""
    rows = []
    median = {name: statistics.median(cost.seconds) for name, cost in costs.items() if cost.seconds}
    for name, cost in costs.items():
        if name not in median:
            rows.append([name, "out of memory", "", "", ""])
            continue
        ms = [1000 * value for value in cost.seconds]
        spread = f"{min(ms):.3g}…{max(ms):.3g}" if max(ms) < 100 else f"{min(ms):.0f}…{max(ms):.0f}"
        middle = f"{statistics.median(ms):.3g}" if max(ms) < 100 else f"{statistics.median(ms):.0f}"
        ratio = f"{median[name] / median[base]:.3f}" if base in median else ""
        rows.append([name, middle, spread, ratio, f"{cost.extra_bytes / wide:.3f}"])
    return as_markdown(Table("costs", ["", "ms", "spread", "ratio", memory_name], rows))
