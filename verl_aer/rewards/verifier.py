"""Start the verifier's process, and send it requests with a time limit, from any thread.

math-verify limits time by a signal, which works only in a main thread. Here the kernel ends the child that works on a
request (`verifier_process`), so the limit also holds in Ray's workers and their threads, and within an operation that
never returns to the interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

from verl_aer.errors import VerlAerError
from verl_aer.rewards import replies

CONCURRENT_REQUESTS = max(2, min(4, os.cpu_count() or 1))
"""Maximum number of children at the same time. More threads wait, and their time limit starts when the wait ends."""

START_LIMIT_S = 120.0
END_LIMIT_S = 2.0
REPLY_GRACE_S = 0.5
"""Extra time after the limit, for the kernel to end the child."""


class VerifierError(VerlAerError, RuntimeError):
    """The verifier's process cannot start: an error of the installation, not of an answer."""


def _command(control_fd: int) -> list[str]:
    # Pass on sys.path: a caller that changed it may have found the package there.
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from verl_aer.rewards.verifier_process import main; main({control_fd})"
    )
    return [sys.executable, "-c", program]


class Verifier:
    """One verifier process per calling process. After a fork the child starts another one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._reset()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(CONCURRENT_REQUESTS)

    def _forget(self) -> None:
        """Reset in a forked child: the process belongs to the parent, and threads of the parent may hold the locks."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.returncode = 0
        self._process = self._control = None
        self._reset()

    def ask(self, truth: str, answer: str | None, time_limit_s: float, memory_limit_bytes: int) -> str:
        """Send a request and return one of `replies`, at the latest shortly after `time_limit_s`.

        Raises:
            ValueError: a limit is not above 0; the kernel would take 0 as no limit.
            VerifierError: the process does not start.
        """
        if not (time_limit_s > 0 and memory_limit_bytes > 0):
            raise ValueError(f"limits must be above 0: {time_limit_s} s, {memory_limit_bytes} bytes")
        request = {
            "truth": truth,
            "answer": answer,
            "time_limit_s": time_limit_s,
            "memory_limit_bytes": memory_limit_bytes,
        }
        with self._turns:
            return self._reply(json.dumps(request).encode(), time_limit_s)

    def _reply(self, request: bytes, time_limit_s: float) -> str:
        with self._channel() as channel:
            started = time.monotonic()
            channel.settimeout(time_limit_s + REPLY_GRACE_S)
            with contextlib.suppress(TimeoutError, ConnectionError):
                channel.send(request)
                reply = channel.recv(64)
                if reply:
                    return reply.decode()
        return replies.TIME_LIMIT if time.monotonic() - started >= time_limit_s else replies.VERIFIER_ENDED

    def _channel(self) -> socket.socket:
        """Connect to a new child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as unless_sent:
            unless_sent.enter_context(ours)
            with self._lock:
                self._send(theirs)
            unless_sent.pop_all()
        return ours

    def _send(self, theirs: socket.socket) -> None:
        for _ in range(2):
            # The process may have ended since the last request, for example out of memory: start it once more.
            with contextlib.suppress(ConnectionError):
                socket.send_fds(self._running(), [b"x"], [theirs.fileno()])
                return
            self._stop()
        raise VerifierError("the verifier's process exits immediately")

    def _running(self) -> socket.socket:
        if self._control is None:
            self._start()
        assert self._control is not None
        return self._control

    def _start(self) -> None:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                _command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                # The caller handles keyboard interrupts.
                start_new_session=True,
                # With a random hash seed, the order of a set could change a verdict between runs.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        self._control = control
        control.settimeout(START_LIMIT_S)
        with contextlib.suppress(TimeoutError, ConnectionError):
            if control.recv(16):
                self._process.stderr.close()
                return
        self._process.kill()
        said = self._process.stderr.read().decode(errors="replace").strip()[-2000:]
        self._stop()
        raise VerifierError(f"the verifier's process did not start: {said or 'no output'}")

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
        self._process = self._control = None

    def close(self) -> None:
        """End the process and its children."""
        with self._lock:
            self._stop()
