"""Every process that a child has started, wherever it went since: what has to end when the child does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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


class ProcessEntry(NamedTuple):
    """What /proc says about a process; a pid with another start time is another process."""

    parent: int
    session: int
    started: int
    is_zombie: bool


class ProcessTree:
    """The processes of a child that leads its own session.

    Ray puts its daemons into separate process groups, and an orphan loses its parent: neither the group
    nor the parent alone finds all. A process belongs here if it is in the session, or was once seen below a
    member.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._members: dict[int, int] = {}

    def watch(self) -> list[int]:
        """Note who has joined since the last call; the pids of the members that live."""
        self._child.poll()
        table = read_process_table()
        children: dict[int, list[int]] = {}
        for pid, entry in table.items():
            children.setdefault(entry.parent, []).append(pid)

        members = {pid for pid, entry in table.items() if entry.session == self._child.pid}
        members |= {pid for pid, started in self._members.items() if pid in table and table[pid].started == started}
        frontier = list(members)
        while frontier:
            joined = [pid for pid in children.get(frontier.pop(), []) if pid not in members]
            members.update(joined)
            frontier.extend(joined)
        self._members = {pid: table[pid].started for pid in members}
        return [pid for pid in members if not table[pid].is_zombie]

    def wait_until_gone(self, seconds: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Whether no member lives any more, after `seconds` at most, or as soon as `hurry()`."""
        deadline = time.monotonic() + seconds
        while self.watch():
            if time.monotonic() > deadline or hurry():
                return False
            time.sleep(POLL_INTERVAL_S)
        return True

    def end(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """SIGTERM to every member; SIGKILL to those that live after the grace time or once `hurry()`."""
        self._send(signal.SIGTERM)
        while not self.wait_until_gone(GRACE_SECONDS, hurry):
            self._send(signal.SIGKILL)

    def _send(self, sent: signal.Signals) -> None:
        for pid in self.watch():
            # It may end by itself between the look and the signal.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)


def read_process_table() -> dict[int, ProcessEntry]:
    """All processes of this host by pid, from Linux's /proc/<pid>/stat."""
    table = {}
    for folder in os.scandir("/proc"):
        if not folder.name.isdigit():
            continue
        try:
            stat = Path(folder.path, "stat").read_text(errors="replace")
        except OSError:
            # The process ended between the listing and the reading.
            continue
        # The name in parentheses may hold spaces and parentheses. After it: state, parent, group, session,
        # and as the twentieth field the start time (proc(5)).
        fields = stat[stat.rindex(")") + 2 :].split()
        table[int(folder.name)] = ProcessEntry(
            parent=int(fields[1]), session=int(fields[3]), started=int(fields[19]), is_zombie=fields[0] == "Z"
        )
    return table
