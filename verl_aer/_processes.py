"""Track and end all descendants of a child process, including those that changed session or were re-parented."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil

PR_SET_PDEATHSIG = 1
"""Option of prctl(2)."""
GRACE_SECONDS = 10.0
"""Time for a process to end after SIGTERM; Ray's daemons notice within seconds that their driver is gone."""

POLL_INTERVAL_S = 0.05
"""Time between two checks of processes that are about to end."""


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent, the process ``parent``, ends in any way (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended before the call.
        os._exit(1)


class ProcessTree:
    """The processes of a child that leads its own session.

    psutil's `children` does not find all of them: Ray puts its daemons into separate process groups, and a daemon whose
    parent has ended is a child of init. A process is therefore a member if it is in the session, or if it was ever seen
    as a descendant of a member.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._members: set[psutil.Process] = set()

    def watch(self) -> list[int]:
        """Add new members, and return the pids of the living members."""
        return [process.pid for process in self._living()]

    def wait_until_gone(self, seconds: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Wait until all members have ended, and return whether they have; stop after `seconds` or once `hurry()`."""
        deadline = time.monotonic() + seconds
        # Not `psutil.wait_procs`, because it would reap the child, and `subprocess` would lose its exit code.
        while self.watch():
            if time.monotonic() > deadline or hurry():
                return False
            time.sleep(POLL_INTERVAL_S)
        return True

    def end(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Send SIGTERM to every member, and SIGKILL to those still alive after the grace time or once `hurry()`."""
        self._send(signal.SIGTERM)
        while not self.wait_until_gone(GRACE_SECONDS, hurry):
            self._send(signal.SIGKILL)

    def _living(self) -> list[psutil.Process]:
        self._child.poll()
        # Reading the parent makes psutil check that a pid has not been reused.
        table = list(psutil.process_iter(["ppid", "status"]))
        members = {process.pid: process for process in table if process in self._members or self._leads(process)}
        while joined := {
            process.pid: process for process in table if process.info["ppid"] in members and process.pid not in members
        }:
            members |= joined
        self._members = set(members.values())
        return [process for process in self._members if process.info["status"] != psutil.STATUS_ZOMBIE]

    def _leads(self, process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == self._child.pid
        except ProcessLookupError:
            # The process has ended since the table was read.
            return False

    def _send(self, sent: signal.Signals) -> None:
        for process in self._living():
            # The process may end between the check and the signal.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(sent)
