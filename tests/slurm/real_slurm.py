"""A real Slurm on this machine, with nodes that are isolated like separate machines.

Each node is a process namespace with a separate network address, host name, process table, shared memory and local
folder. slurmctld and munged run next to them. The system's own Slurm and munge are not touched: configuration, sockets,
keys and state are in one folder, which is deleted at the end together with every process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.small_run import command_line

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter")
PACKAGES = ("slurm-wlm", "munge", "iproute2", "util-linux")
INSTALL_SECONDS = 300
LOCAL = Path("/run/aer-local")
"""Where each node sees its own folder, as of a local disk; its name is short because Ray's sockets lie below."""
NETWORK = "10.211.77"
"""First three bytes of the nodes' addresses; the last ones are 1 for the controller and 11, 12, ... for the nodes."""
NETWORK6 = "fd00:211:77:"
BRIDGE = "aerbr"
KILL_WAIT = 30
"""Seconds between SIGTERM and SIGKILL of an ended job: Slurm's own default."""
GRACE_SECONDS = 120
"""Between the signal of a pre-emption and the end of the job."""

CONFIG = """
ClusterName=aer
SlurmctldHost={host}({network}.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
# A re-queued job waits until its old credential has expired, by default two minutes.
AuthInfo=socket={root}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
KillWait={kill_wait}
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


class SlurmUnavailable(RuntimeError):
    """A real Slurm cannot be started here; the message says why."""


def require_slurm() -> None:
    """Installs Slurm's packages if they are not there.

    Raises:
        SlurmUnavailable: the machine does not allow it.
    """
    if os.geteuid() != 0:
        raise SlurmUnavailable("network namespaces and Slurm's daemons need root")
    if not all(map(shutil.which, PROGRAMS)):
        _install()
    probe = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        raise SlurmUnavailable(f"this machine allows no namespaces: {probe.stderr.strip()}")


def _install() -> None:
    if shutil.which("apt-get") is None:
        raise SlurmUnavailable(f"of {', '.join(PROGRAMS)} some are missing, and there is no apt-get to install them")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update"],
        ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES],
    ):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise SlurmUnavailable(f"{shlex.join(command)} took over {INSTALL_SECONDS} s") from error
        if done.returncode and "install" in command:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SlurmUnavailable(f"{shlex.join(command)}: {last}")


class SlurmNode:
    """One node: its own namespaces, and all that slurmd starts there ends with them."""

    def __init__(self, name: str, number: int, root: Path) -> None:
        self.name = name
        self.address = f"{NETWORK}.{10 + number}"
        self.address6 = f"{NETWORK6}:{10 + number:x}"
        self.local = root / "local" / name
        self._root = root
        self._namespace = f"aer-{name}"
        self._link = f"aer{name}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.local.mkdir(parents=True, exist_ok=True)
        run("ip", "netns", "add", self._namespace)
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        run("ip", "link", "set", self._link, "master", BRIDGE, "up")
        inside = ("ip", "-n", self._namespace)
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "add", "default", "via", f"{NETWORK}.1")
        # Two more interfaces, as real nodes have them: one with IPv6 alone, and one that leads nowhere.
        run("ip", "link", "add", f"{self._link}s", "type", "veth", "peer", "name", "six0", "netns", self._namespace)
        run("ip", "link", "set", f"{self._link}s", "master", BRIDGE, "up")
        run(*inside, "addr", "add", f"{self.address6}/64", "dev", "six0", "nodad")
        run(*inside, "link", "set", "six0", "up")
        run(*inside, "link", "add", "mgmt0", "type", "veth", "peer", "name", "mgmt1")
        run(*inside, "addr", "add", f"192.168.{self.address.rpartition('.')[2]}.1/24", "dev", "mgmt0")
        run(*inside, "link", "set", "mgmt0", "up")
        script = f"""
            set -e
            hostname {self.name}
            mount --bind {self._root}/hosts /etc/hosts
            # There is no name server: asking for one costs ten seconds a name.
            mount --bind {self._root}/nsswitch.conf /etc/nsswitch.conf
            mount --bind {self.local} {LOCAL}
            mount -t tmpfs -o size=8g none /dev/shm
            # bash stays process 1, which has to see to the end of orphans; slurmd does not.
            slurmd -D -N {self.name} -f {self._root}/slurm.conf &
            wait $!
        """
        with (self._root / f"node.{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "nsenter",
                    f"--net=/run/netns/{self._namespace}",
                    "unshare",
                    "--mount",
                    "--uts",
                    "--pid",
                    "--fork",
                    "--mount-proc",
                    "--kill-child",
                    "bash",
                    "-c",
                    script,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self, *needles: str) -> list[tuple[int, str]]:
        """Pid (outside) and command line of each live process of the node, of those only that hold a needle."""
        if self._process is None:
            return []
        listed = run("ip", "netns", "pids", self._namespace).stdout.split()
        found = [(int(pid), command_line(int(pid))) for pid in listed]
        return [(pid, line) for pid, line in found if line and (not needles or any(n in line for n in needles))]

    def kill(self, needle: str) -> None:
        """SIGKILL to the node's processes of this name."""
        for pid, _ in self.processes(needle):
            os.kill(pid, signal.SIGKILL)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command on the node, as over ssh."""
        return run(*self._entered(), *command, check=False)

    def popen(self, *command: str, **options: object) -> subprocess.Popen[bytes]:
        """As `run`, for a command that stays."""
        return subprocess.Popen([*self._entered(), *command], stdin=subprocess.DEVNULL, **options)

    def _entered(self) -> list[str]:
        (pid,) = (pid for pid, line in self.processes("slurmd") if line.startswith("slurmd "))
        return ["nsenter", "-t", str(pid), "--net", "--mount", "--uts", "--pid"]

    def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pid, _ in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process = None
        for link in (self._link, f"{self._link}s"):
            run("ip", "link", "delete", link, check=False)
        run("ip", "netns", "delete", self._namespace, check=False)


class Slurm:
    """Controller and nodes; `sbatch` and the other commands by their names."""

    def __init__(self, root: Path, cpus: Sequence[int]) -> None:
        self.root = root
        self.nodes = [SlurmNode(f"n{number}", number, root) for number in range(1, len(cpus) + 1)]
        self._cpus = cpus
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}

    def start(self) -> None:
        for folder in ("state", *(f"spool.{node.name}" for node in self.nodes)):
            (self.root / folder).mkdir()
        LOCAL.mkdir(exist_ok=True)
        host = socket.gethostname().partition(".")[0]
        lines = [
            f"NodeName={node.name} NodeAddr={node.address} CPUs={cpus} State=UNKNOWN"
            for node, cpus in zip(self.nodes, self._cpus, strict=True)
        ]
        (self.root / "slurm.conf").write_text(
            CONFIG.format(
                host=host,
                network=NETWORK,
                root=self.root,
                nodes="\n".join(lines),
                kill_wait=KILL_WAIT,
                grace=GRACE_SECONDS,
            )
        )
        names = {"127.0.0.1": "localhost", "::1": "localhost", f"{NETWORK}.1": host}
        names |= {node.address: node.name for node in self.nodes}
        (self.root / "hosts").write_text("".join(f"{address} {name}\n" for address, name in names.items()))
        (self.root / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        # Its folder may be open to others, as below /tmp: --force makes that a warning.
        munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.root}/munge.sock"]
        munged += [f"--{name}-file={self.root}/munged.{name}" for name in ("pid", "seed", "log")]
        self._daemon("munged", munged)
        wait_until(lambda: (self.root / "munge.sock").exists(), 20, "munged has no socket")
        self._daemon("slurmctld", ["slurmctld", "-D", "-f", f"{self.root}/slurm.conf"])
        for node in self.nodes:
            node.start()
        idle = f"{len(self.nodes)} idle"
        wait_until(lambda: self.command("sinfo", "-h", "-p", "low", "-o", "%D %t") == idle, 15, self._logs)

    def _logs(self) -> str:
        logs = sorted([*self.root.glob("*.log"), *self.root.glob("*.out")])
        return "the nodes are not idle:\n" + "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs)

    def _daemon(self, name: str, command: list[str]) -> None:
        with (self.root / f"{name}.out").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            )

    def command(self, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """A command's output, stripped; it may fail, as `sinfo` does until the controller listens."""
        return run(*command, env={**self.environment, **(env or {})}, cwd=cwd, check=False).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        text = self.command("scontrol", "-o", "show", "job", job)
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def state(self, job: str) -> str:
        return self.job(job).get("JobState", "")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()
        run("ip", "link", "delete", BRIDGE, check=False)
        with contextlib.suppress(OSError):
            LOCAL.rmdir()


@contextmanager
def real_slurm(cpus: Sequence[int] = (24, 8)) -> Iterator[Slurm]:
    """A running Slurm, with a node for each number of processors, which are more than the machine has.

    Raises:
        SlurmUnavailable: the machine does not allow it.
    """
    require_slurm()
    root = Path(tempfile.mkdtemp(prefix="aer-slurm-", dir="/tmp"))
    slurm = Slurm(root, cpus)
    # What an earlier run that was killed may have left.
    slurm.stop()
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(root, ignore_errors=True)


def run(*command: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        raise SlurmUnavailable(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def wait_until(happened: Callable[[], bool], seconds: float, otherwise: str | Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"within {seconds} s: {otherwise if isinstance(otherwise, str) else otherwise()}")
        time.sleep(0.2)
