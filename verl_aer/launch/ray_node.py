"""Start Ray on one node of a cluster, and end its processes with this one.

    python -m verl_aer.launch.ray_node head --address-file FILE [--peer NODE] [--interface IF]
    python -m verl_aer.launch.ray_node worker --address HOST:PORT [--interface IF]

Ray's defaults suit a machine with one user. Here every port is a free one, so that two Rays on a node do not interfere.
Ray's files are in a folder of the job, and the address is reachable from the other nodes. However this process ends,
Ray's processes on the node end too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from verl_aer._files import write_text_atomically
from verl_aer._processes import ProcessTree, die_with_parent
from verl_aer.errors import VerlAerError

LEAST_CPUS = 16
"""Minimum of Ray's CPUs, which are slots: veRL's actors reserve one or more each and do not use them all the time. With
one slot per core of a small node they would wait for each other forever."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""Signals that stop the node. SIGUSR2 is for srun: at SIGTERM it kills its step at once, without time to clean up."""
POLL_INTERVAL_S = 0.5
"""Interval between two checks of Ray's processes."""
STOP_SECONDS = 5.0
"""Time for Ray's processes to end by themselves. A cancelled job has 30 s in total by Slurm's default."""
LONGEST_TEMP_DIR = 40
"""Characters. Ray's sockets have paths that are 63 characters longer, and the system limits those to 107."""
LOG_TAIL_BYTES = 2**20
"""Size of the tail that is kept of each of Ray's logs."""


class NodeError(VerlAerError, ValueError):
    """Ray cannot be started on this node. The message gives the cause."""


def own_address(interface: str, peer: str) -> str:
    """Choose this node's address: that of the interface, else that towards the peer, else loopback.

    Raises:
        NodeError: an unknown interface, an interface without an address, or a peer that cannot be resolved.
    """
    if interface:
        return address_of(interface, interface_addresses())
    if peer:
        return address_towards(peer)
    return "127.0.0.1"


def interface_addresses() -> dict[str, list[str]]:
    """List the addresses of each network interface, IPv4 first, without link-local ones."""
    import psutil

    found: dict[str, list[str]] = {}
    for name, entries in psutil.net_if_addrs().items():
        by_family = {family: [e.address for e in entries if e.family == family] for family in _FAMILIES}
        found[name] = [a for family in _FAMILIES for a in by_family[family] if not a.lower().startswith("fe80")]
    return found


_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def address_of(interface: str, addresses: Mapping[str, Sequence[str]]) -> str:
    """Return the interface's first address.

    >>> address_of("ib0", {"eth0": ["10.0.0.1"], "ib0": ["10.1.0.1", "fd00::1"]})
    '10.1.0.1'
    """
    usable = [name for name, found in addresses.items() if found]
    if interface not in usable:
        raise NodeError(
            f"{socket.gethostname()} has no interface {interface} with an address; it has {', '.join(sorted(usable))}. "
            "Set INTERFACE to an interface that all nodes have, or leave it empty."
        )
    return addresses[interface][0]


def address_towards(peer: str) -> str:
    """Return the source address of packets to `peer`. Nothing is sent: the system only chooses the route."""
    try:
        resolved = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        raise NodeError(f"{socket.gethostname()} cannot resolve {peer}: {error.strerror}") from error
    errors = []
    for family, kind, protocol, _, address in sorted(resolved, key=lambda entry: entry[0]):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(address)
            except OSError as error:
                errors.append(f"{address[0]}: {error.strerror}")
                continue
            return probe.getsockname()[0]
    raise NodeError(f"no route from {socket.gethostname()} to {peer} ({'; '.join(errors)})")


def free_ports(address: str, count: int) -> list[int]:
    """Find `count` different free ports at `address`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket(family, socket.SOCK_STREAM)) for _ in range(count)]
        for probe in probes:
            probe.bind((address, 0))
        return [probe.getsockname()[1] for probe in probes]


def host_and_port(address: str, port: int) -> str:
    """Join address and port, with brackets around an IPv6 address.

    >>> host_and_port("10.0.0.1", 6379), host_and_port("fd00::1", 6379)
    ('10.0.0.1:6379', '[fd00::1]:6379')
    """
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def split_host(address: str) -> str:
    """Return the host of `host:port`, without brackets.

    >>> split_host("10.0.0.1:6379"), split_host("[fd00::1]:6379")
    ('10.0.0.1', 'fd00::1')
    """
    return address.rpartition(":")[0].strip("[]")


def cpu_slots(asked: int | None) -> int:
    """Return the requested slots, else the cores that Slurm gives the job on this node, but at least `LEAST_CPUS`."""
    if asked is not None:
        return asked
    return max(int(os.environ.get("SLURM_CPUS_ON_NODE") or os.cpu_count() or 1), LEAST_CPUS)


def ray_start_command(args: argparse.Namespace, address: str) -> list[str]:
    """Build the command `ray start`, with a separate port for everything that listens."""
    listen, agent, metrics, dashboard, client = free_ports(address, 5)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        f"--node-ip-address={address}",
        f"--num-cpus={cpu_slots(args.cpus)}",
        *([f"--num-gpus={args.gpus}"] if args.gpus is not None else []),
        f"--dashboard-agent-listen-port={agent}",
        f"--metrics-export-port={metrics}",
        # Any free port, instead of the fixed range of all Rays on the node.
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    if args.role == "worker":
        return [*command, f"--address={args.address}"]
    return [
        *command,
        "--head",
        f"--port={listen}",
        f"--temp-dir={args.temp_dir}",
        f"--ray-client-server-port={client}",
        f"--include-dashboard={'true' if args.dashboard else 'false'}",
        f"--dashboard-host={address}",
        f"--dashboard-port={dashboard}",
    ]


def run_node(args: argparse.Namespace) -> int:
    """Run Ray on this node until it ends or this process is stopped. Returns the exit code of `ray start`."""
    address = own_address(args.interface, split_host(args.address) if args.role == "worker" else args.peer)
    command = ray_start_command(args, address)
    args.temp_dir.mkdir(parents=True, exist_ok=True)
    print(f"[verl_aer] {socket.gethostname()}: {shlex.join(command)}", flush=True)
    received: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda signum, frame: received.append(signum))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
        env={**os.environ, "RAY_TMPDIR": str(args.temp_dir)},
    )
    tree = ProcessTree(process)
    try:
        if args.role == "head":
            port = next(part.removeprefix("--port=") for part in command if part.startswith("--port="))
            write_text_atomically(args.address_file, host_and_port(address, int(port)) + "\n")
        while process.poll() is None and not received:
            tree.watch()
            time.sleep(POLL_INTERVAL_S)
    finally:
        deadline = time.monotonic() + STOP_SECONDS
        tree.end(hurry=lambda: time.monotonic() > deadline)
        if args.logs is not None:
            keep_logs(args.temp_dir, args.logs)
        shutil.rmtree(args.temp_dir, ignore_errors=True)
    if received:
        # The launcher's own signal is not a failure.
        return 0 if received[0] == signal.SIGUSR2 else 128 + received[0]
    return process.wait()


def keep_logs(temp_dir: Path, into: Path) -> None:
    """Keep the tails of Ray's logs: they hold the last output of the workers, and the node's folder is deleted."""
    for log in sorted(temp_dir.glob("session_2*/logs/*")):
        if log.is_file() and log.stat().st_size:
            with log.open("rb") as content:
                content.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
                into.mkdir(parents=True, exist_ok=True)
                (into / log.name).write_bytes(content.read())


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Run one node of a Ray cluster."
    parser = argparse.ArgumentParser(prog="python -m verl_aer.launch.ray_node", description=description)
    parser.add_argument("role", choices=["head", "worker"])
    parser.add_argument("--address", default="", help="address of the head, for a worker")
    parser.add_argument("--address-file", type=Path, help="file to which the head writes its address")
    parser.add_argument("--peer", default="", help="another node; the head uses the address that leads to it")
    parser.add_argument("--interface", default="", help="network interface to use (default: the route to the peer)")
    parser.add_argument("--cpus", type=int, help="CPU slots (default: the node's cores, at least 16)")
    parser.add_argument("--gpus", type=int, help="GPU slots (default: the GPUs that Ray finds)")
    parser.add_argument("--temp-dir", type=Path, required=True, help="local folder of this job, deleted at the end")
    parser.add_argument("--logs", type=Path, help="folder for the tails of Ray's logs")
    parser.add_argument("--dashboard", action="store_true", help="start Ray's dashboard on the head")
    args = parser.parse_args(arguments)
    if (args.role == "head") != (args.address_file is not None) or (args.role == "worker") != bool(args.address):
        parser.error("a head needs --address-file, a worker needs --address")
    if len(str(args.temp_dir)) > LONGEST_TEMP_DIR:
        parser.error(f"--temp-dir {args.temp_dir} is longer than {LONGEST_TEMP_DIR} characters: it holds Ray's sockets")
    try:
        return run_node(args)
    except NodeError as error:
        print(f"verl_aer: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
