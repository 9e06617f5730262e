"""End every process that a child has started, wherever it went since."""

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
"""Of prctl(2)."""
GRACE_SECONDS = 10.0
"""What a process gets to end by itself: Ray's daemons notice within seconds that their driver is gone."""

POLL_INTERVAL_S = 0.05
"""Between two looks at processes that are about to end."""


def end_with_the_parent(parent: int) -> None:
    """From now on this process is killed when its parent, whose pid it was told, ends in whatever way (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It ended before the kernel was asked.
        os._exit(1)


class ProcessTree:
    """The processes of a child that leads its own session.

    psutil's `children` does not find all: Ray puts its daemons into separate process groups, and a daemon whose parent
    has ended is a child of init. So a process belongs here if it is in the session, or was once seen below a member.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._members: set[psutil.Process] = set()

    def watch(self) -> list[int]:
        """Note who has joined since the last call; return the pids of the members that live."""
        return [process.pid for process in self._living()]

    def wait_until_gone(self, seconds: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Return whether no member lives any more, after `seconds` at most or as soon as `hurry()`."""
        deadline = time.monotonic() + seconds
        # Not `psutil.wait_procs`: it would take the child's exit code away from `subprocess`.
        while self.watch():
            if time.monotonic() > deadline or hurry():
                return False
            time.sleep(POLL_INTERVAL_S)
        return True

    def end(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Send SIGTERM to every member, and SIGKILL to those that live after the grace time or once `hurry()`."""
        self._send(signal.SIGTERM)
        while not self.wait_until_gone(GRACE_SECONDS, hurry):
            self._send(signal.SIGKILL)

    def _living(self) -> list[psutil.Process]:
        self._child.poll()
        # With the parent psutil also checks that a pid has not become another process.
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
            # It has ended since the table was read.
            return False

    def _send(self, sent: signal.Signals) -> None:
        for process in self._living():
            # It may end by itself between the look and the signal.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(sent)
