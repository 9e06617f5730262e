"""A Python interpreter that starts in milliseconds: a fork of a process that has imported veRL and vLLM.

    python -m verl_aer.forking.python SCRIPT [ARGUMENT ...]
    python -m verl_aer.forking.python -c CODE [ARGUMENT ...]

Ray starts a dozen worker processes for a run, and each of them spends three to nine seconds on the same imports. The
preset ``hardware=cpu`` gives this to Ray as the interpreter of its workers (``runtime_env.py_executable``). It
asks :mod:`verl_aer.forking.server` to fork, hands over its arguments, environment and open files, and stays as the
fork's place in the process tree: it passes signals on to the fork and ends as the fork ends. The first one starts the
server. Without a server it becomes a usual Python process.

It imports nothing but Python's own modules: that is what makes it quick.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import struct
import sys
from typing import NoReturn

SERVER_CODE = "from verl_aer.forking.server import main; main({})"
BACKLOG = 64

LENGTH = struct.Struct("=I")
"""Of a message, and the form of the pid and the wait status that the server answers."""

KEPT = "VERL_AER_FORK"
"""The variable that each fork has beside those of its client."""

OPTIONS = ("-B", "-E", "-I", "-O", "-P", "-W", "-X", "-b", "-d", "-i", "-s", "-u", "-v")

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def address() -> str | None:
    """Where the server of this Ray node and job listens (an abstract Unix socket); None outside of Ray."""
    raylet = os.environ.get("RAY_RAYLET_PID")
    return raylet and f"\0verl_aer-fork-server-{raylet}-{os.environ.get('RAY_JOB_ID', '')}"


def peer_pid(connection: socket.socket) -> int | None:
    """Pid of the other end; None if it belongs to another user, since anyone can use such an address."""
    pid, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid if user == os.getuid() else None


def connect() -> socket.socket | None:
    """A connection to the server, which is started if there is none.

    Returns:
        None outside of Ray, and where another user listens.
    """
    name = address()
    if name is None:
        return None
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(name)
            return connection if peer_pid(connection) else None
        except ConnectionRefusedError:
            connection.close()
            start_server(name)


def start_server(name: str) -> None:
    """Start a server at this address, unless another client has just done so."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(name)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return
            raise
        # From now on whoever connects waits until the server has done its imports.
        listener.listen(BACKLOG)
        listener.set_inheritable(True)
        code = SERVER_CODE.format(listener.fileno())
        os.posix_spawn(sys.executable, [sys.executable, "-u", "-c", code], server_environment())


def server_environment() -> dict[str, str]:
    """This process's environment, and what a fork cannot change any more.

    Libraries find the place of a process's title by the first variable. OpenMP reads its number of threads while torch
    is imported; Ray allows one to a worker that reserves no CPUs.
    """
    return {KEPT: "1", **os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def request_fork(connection: socket.socket, arguments: list[str]) -> int | None:
    """Pid of the fork; None if the server ended before it answered."""
    files = [int(name) for name in os.listdir("/proc/self/fd")]
    files = [file for file in files if _is_inherited(file)]
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "files": files}
    message = json.dumps(request).encode()
    try:
        socket.send_fds(connection, [LENGTH.pack(len(message))], files)
        connection.sendall(message)
    except (BrokenPipeError, ConnectionResetError):
        return None
    return receive_number(connection)


def _is_inherited(file: int) -> bool:
    try:
        return os.get_inheritable(file)
    except OSError:
        # The listing's own file.
        return False


def receive_number(connection: socket.socket) -> int | None:
    """The next number that the server sends; None if it has ended."""
    try:
        data = connection.recv(LENGTH.size, socket.MSG_WAITALL)
    except ConnectionResetError:
        return None
    return LENGTH.unpack(data)[0] if len(data) == LENGTH.size else None


def end_like(status: int | None) -> NoReturn:
    """End this process in the way that a wait status tells; None is a fork of which nothing is known any more."""
    code = 1 if status is None else os.waitstatus_to_exitcode(status)
    if code < 0:
        # The handler of SIGKILL cannot be changed, and need not be.
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main() -> NoReturn:
    # `multiprocessing` repeats the interpreter's options for its children; the server has them already.
    arguments = sys.argv[1:]
    while arguments[0].startswith(OPTIONS):
        arguments = arguments[2:] if arguments[0] == "-X" else arguments[1:]
    connection = connect()
    fork = connection and request_fork(connection, arguments)
    if not fork:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])

    def forward(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(fork, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    end_like(receive_number(connection))


if __name__ == "__main__":
    main()
