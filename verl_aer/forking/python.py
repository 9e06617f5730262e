"""Start a Python interpreter in milliseconds, by forking a process that has imported veRL and vLLM.

    python -m verl_aer.forking.python SCRIPT [ARGUMENT ...]
    python -m verl_aer.forking.python -c CODE [ARGUMENT ...]

Ray starts a dozen worker processes for a run, and each spends three to nine seconds on the same imports. The preset
``hardware=cpu`` makes this module the interpreter of Ray's workers (``runtime_env.py_executable``). It requests a fork
from :mod:`verl_aer.forking.server`, sends its arguments, environment and open files, and represents the fork in the
process tree: it passes signals to the fork and ends like the fork. The first process starts the server. Without a
server it becomes an ordinary Python process.

For speed it imports only modules of the standard library.
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
"""Variable that each fork has in addition to those of its client."""

OPTIONS = ("-B", "-E", "-I", "-O", "-P", "-W", "-X", "-b", "-d", "-i", "-s", "-u", "-v")

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def address() -> str | None:
    """Return the address of the server of this Ray node and job (an abstract Unix socket); None outside of Ray."""
    raylet = os.environ.get("RAY_RAYLET_PID")
    return raylet and f"\0verl_aer-fork-server-{raylet}-{os.environ.get('RAY_JOB_ID', '')}"


def peer_pid(connection: socket.socket) -> int | None:
    """Return the pid of the other end; None if it belongs to another user, because anyone can use such an address."""
    pid, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid if user == os.getuid() else None


def connect() -> socket.socket | None:
    """Connect to the server, and start it if it does not run.

    Returns:
        None outside of Ray, and if another user listens at the address.
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
    """Start a server at this address, unless another client has just started it."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(name)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return
            raise
        # From now on clients that connect wait until the server has done its imports.
        listener.listen(BACKLOG)
        listener.set_inheritable(True)
        code = SERVER_CODE.format(listener.fileno())
        os.posix_spawn(sys.executable, [sys.executable, "-u", "-c", code], server_environment())


def server_environment() -> dict[str, str]:
    """Return this process's environment, plus variables that a fork cannot change later.

    Libraries find the memory of the process title by the first variable. OpenMP reads its number of threads when torch
    is imported, and Ray gives one thread to a worker that reserves no CPUs.
    """
    return {KEPT: "1", **os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def request_fork(connection: socket.socket, arguments: list[str]) -> int | None:
    """Request a fork and return its pid; None if the server ended before it answered."""
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
        # The file of the directory listing itself.
        return False


def receive_number(connection: socket.socket) -> int | None:
    """Read the server's next number; None if the server has ended."""
    try:
        data = connection.recv(LENGTH.size, socket.MSG_WAITALL)
    except ConnectionResetError:
        return None
    return LENGTH.unpack(data)[0] if len(data) == LENGTH.size else None


def end_like(status: int | None) -> NoReturn:
    """End this process with the given wait status; None if the state of the fork is unknown."""
    code = 1 if status is None else os.waitstatus_to_exitcode(status)
    if code < 0:
        # The handler of SIGKILL cannot be changed.
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main() -> NoReturn:
    # `multiprocessing` repeats the interpreter's options for its children, but the server already has them.
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
