"""`verl-aer cluster` and a job's runtime environment, on a real Ray of two nodes that lack this package."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.jobs import countdown_overrides
from tests.small_run import make_inputs
from verl_aer._processes import ProcessTree
from verl_aer.cli.main import main as verl_aer
from verl_aer.launch.ray_node import ray_start_command

ROOT = Path(__file__).parents[2]
START_SECONDS = 60


@dataclass
class BareCluster:
    """Ray on an interpreter that has everything but this package."""

    address: str
    dashboard: str
    python: Path
    environment: dict[str, str]


def bare_python(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("verl_aer", "__editable__")):
            (packages / path.name).symlink_to(path)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def bare_cluster(tmp_path_factory) -> Iterator[BareCluster]:
    folder = tmp_path_factory.mktemp("bare")
    # A folder that no other test's Ray uses, which would take the address that is left there for its own.
    ray_files = Path(tempfile.mkdtemp(prefix="aer", dir="/tmp"))
    python = bare_python(folder / "venv")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32, "RAY_TMPDIR": str(ray_files)}
    common = {"temp_dir": ray_files, "cpus": 16, "gpus": 1, "dashboard": True}
    started: list[tuple[subprocess.Popen[bytes], ProcessTree]] = []

    def start(role: str, address: str = "") -> list[str]:
        args = argparse.Namespace(role=role, address=address, **common)
        command = [str(python), *ray_start_command(args, "127.0.0.1")[1:]]
        with (folder / f"{role}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        tree = ProcessTree(process)
        started.append((process, tree))
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (folder / f"{role}.log").read_text():
            tree.watch()
            assert process.poll() is None, (folder / f"{role}.log").read_text()
            assert time.monotonic() < deadline, (folder / f"{role}.log").read_text()
            time.sleep(0.2)
        return command

    def option(command: list[str], name: str) -> str:
        return next(word.removeprefix(f"--{name}=") for word in command if word.startswith(f"--{name}="))

    try:
        head = start("head")
        address = f"127.0.0.1:{option(head, 'port')}"
        start("worker", address)
        dashboard = f"http://127.0.0.1:{option(head, 'dashboard-port')}"
        yield BareCluster(address, dashboard, python, environment)
    finally:
        for _, tree in started:
            tree.watch()
        for process, tree in reversed(started):
            deadline = time.monotonic() + 3
            tree.end(hurry=lambda until=deadline: time.monotonic() > until)
            process.wait()
        shutil.rmtree(ray_files, ignore_errors=True)


@contextlib.contextmanager
def submitted(cluster: BareCluster, folder: Path, *command: str) -> Iterator[subprocess.CompletedProcess[str]]:
    """A job of the cluster, with the runtime environment that `verl-aer runtime-env` writes."""
    environment = folder / "runtime_env.yaml"
    assert verl_aer(["runtime-env", "--env", f"MARK={folder}", "--out", str(environment)]) == 0
    words = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard]
    words += ["--runtime-env", str(environment), "--", str(cluster.python), *command]
    yield subprocess.run(
        words, env=cluster.environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def check_cluster(cluster: BareCluster, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a separate process, because Ray reads its token once, and not in the checkout: Ray shows the nodes every
    folder that Python searches here."""
    command = [sys.executable, "-m", "verl_aer.cli", "cluster", "--address", cluster.address, *words]
    env = {**cluster.environment, **environment}
    return subprocess.run(
        command, env=env, cwd=cluster.python.parent, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.timeout(300)
def test_nodes_without_the_package_are_found(bare_cluster, tmp_path):
    done = check_cluster(bare_cluster, "--gpus-per-node", "1", "--shared", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("verl_aer  not installed") == 2, done.stdout
    assert "ok    torch" in done.stdout
    assert "2 node(s) have joined, with 2 GPU(s)" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
def test_a_job_carries_the_package_to_every_node(bare_cluster, tmp_path):
    with submitted(bare_cluster, tmp_path, "-m", "verl_aer.cli", "cluster", "--shared", str(tmp_path)) as job:
        assert job.returncode == 0, job.stdout + job.stderr
        assert "nothing is missing" in job.stdout
        assert "verl_aer      0.1.0 (" in job.stdout


@pytest.mark.timeout(120)
def test_nodes_that_do_not_come_are_named(bare_cluster):
    done = check_cluster(bare_cluster, "n7", "--gpus-per-node", "2", "--wait", "1")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("verl-aer cluster: after 1 s the cluster is incomplete: n7 has not joined; "), last
    assert last.count(" has 1 of 2 GPUs") == 2


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_another_token_is_refused_with_what_to_do(bare_cluster):
    done = check_cluster(bare_cluster, RAY_AUTH_TOKEN="cd" * 32)
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN (or ~/.ray/auth_token) here" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_trains_on_two_nodes_that_lack_the_package(bare_cluster, tmp_path):
    make_inputs(tmp_path, train_rows=64)
    environment = {
        **bare_cluster.environment,
        "RAY_API_SERVER_ADDRESS": bare_cluster.dashboard,
        "PYTHON": sys.executable,
        "CLUSTER_PYTHON": str(bare_cluster.python),
        "OUT": str(tmp_path / "runs"),
        "RUN": "first",
        "NODES": "2",
        "GPUS_PER_NODE": "1",
        "RUNTIME_ENV": "--env VLLM_CPU_KVCACHE_SPACE=1",
    }
    command = [
        str(ROOT / "examples" / "ray_cluster" / "submit.sh"),
        "+hardware=cpu",
        *countdown_overrides(tmp_path, steps=2),
    ]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    (log,) = (tmp_path / "runs" / "first").glob("metrics-*.jsonl")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert "aer/alpha" in steps[1]["data"]
