"""Fork interpreters that have already imported veRL and vLLM, for :mod:`verl_aer.forking.python`.

There is one server per Ray node and job. It has a single thread, because a lock held by another thread would stay
locked in a fork. It ends with Ray's node, or after a minute without a fork.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing.spawn
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ray._raylet import ActorClassID, UniqueID

from verl_aer.forking.python import KEPT, LENGTH, peer_pid

PRELOADED = (
    "verl.trainer.ppo.v1",
    "verl.workers.engine_workers",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "verl_aer.cpu.server",
    "verl_aer.cpu.worker",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
)
"""Imports of the processes of a run, the largest first."""

IDLE_SECONDS = 60.0
RESERVED = 1000
"""First file number of the server. Smaller numbers are for the files of the fork, which keep their numbers."""


class Fork:
    """A forked process: the connection of its client, and a file that reports its end."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        self.ended = os.pidfd_open(pid)

    def close(self) -> None:
        os.close(self.ended)
        self.connection.close()


class ForkServer:
    """Accept requests until no client can connect any more."""

    def __init__(self, listener: socket.socket, node: int) -> None:
        self._listener = listener
        self._node = os.pidfd_open(node)
        self._selector = selectors.DefaultSelector()
        self._forks: set[Fork] = set()
        self._node_is_up = True
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._node, selectors.EVENT_READ)

    def serve(self) -> Callable[[], None] | None:
        """Serve. In the server it returns None at the end; in a fork it returns the function to run."""
        while self._node_is_up or self._forks:
            events = self._selector.select(IDLE_SECONDS)
            if not events and not self._forks:
                return None
            for key, _ in events:
                if key.fileobj is self._listener:
                    if program := self._accept():
                        return program
                elif key.fileobj == self._node:
                    self._node_is_up = False
                    self._selector.unregister(self._node)
                elif key.data in self._forks:
                    self._end(key.data)
        return None

    def _accept(self) -> Callable[[], None] | None:
        connection, _ = self._listener.accept()
        client = peer_pid(connection)
        request, files = receive_request(connection) if client else (None, [])
        if request is None:
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._close()
            connection.close()
            return become(request, files, client)
        for file in files:
            os.close(file)
        fork = Fork(pid, connection)
        self._forks.add(fork)
        self._selector.register(fork.ended, selectors.EVENT_READ, fork)
        self._selector.register(connection, selectors.EVENT_READ, fork)
        self._send(fork, pid)
        return None

    def _end(self, fork: Fork) -> None:
        """Handle the end of a fork or of its client. The fork must end with its client."""
        # Only a killed client ends before its fork. If the fork has ended already, the signal goes to a zombie, without
        # effect.
        os.kill(fork.pid, signal.SIGKILL)
        _, status = os.waitpid(fork.pid, 0)
        self._send(fork, status)
        self._selector.unregister(fork.ended)
        self._selector.unregister(fork.connection)
        self._forks.remove(fork)
        fork.close()

    @staticmethod
    def _send(fork: Fork, number: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            fork.connection.sendall(LENGTH.pack(number))

    def _close(self) -> None:
        """Close the server's files in a fork."""
        for fork in self._forks:
            fork.close()
        self._selector.close()
        self._listener.close()
        if self._node_is_up:
            os.close(self._node)


def receive_request(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Read a client's request and its open files; None if the client has ended."""
    header, files, _, _ = socket.recv_fds(connection, LENGTH.size, 253)
    if len(header) < LENGTH.size:
        return None, []
    message = connection.recv(LENGTH.unpack(header)[0], socket.MSG_WAITALL)
    return json.loads(message), files


def become(request: dict[str, Any], files: list[int], client: int) -> Callable[[], None]:
    """Turn this fork into the process that its client requested. Returns the function to run."""
    # Ray and `multiprocessing` kill process groups, so the fork joins the group of its client.
    os.setpgid(0, os.getpgid(client))
    os.chdir(request["folder"])
    change_environment(request["environment"])
    # A new process seeds itself from the system. After a fork Python does so too, but NumPy does not.
    np.random.seed()
    place_files(files, request["files"])
    first, *rest = request["arguments"]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        return lambda: run_code(rest[0])
    sys.argv = [first, *rest]
    sys.path.insert(0, os.path.dirname(first))
    return lambda: run_script(first)


def change_environment(wanted: dict[str, str]) -> None:
    """Set these variables, and keep the first one in place: libraries that set the process title need it there."""
    for name in os.environ.keys() - wanted.keys() - {KEPT}:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def place_files(received: list[int], numbers: list[int]) -> None:
    """Give each received file the number that it had in the client."""
    # In two steps, because a received file may occupy the number of another one.
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, RESERVED) for file in received]
    for file in received:
        os.close(file)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def run_code(code: str) -> None:
    main_module = types.ModuleType("__main__")
    sys.modules["__main__"] = main_module
    exec(code, main_module.__dict__)


def run_script(path: str) -> None:
    runpy.run_path(path, run_name="__main__")


def preload() -> None:
    """Import the modules that the forks need, without making their random numbers equal."""
    # `python -c` searches the current folder first, but the forks have other first folders.
    sys.path.pop(0)
    # The decorator of an actor class draws an id. Without the patch, all forks would then draw equal ids for their
    # tasks.
    with mock.patch("ray.actor.ActorClassID", SystemRandomID):
        for module in PRELOADED:
            importlib.import_module(module)
    if drawn_in_a_fork() == drawn_in_a_fork():
        raise RuntimeError("Ray would give equal ids to the tasks of different forks; each worker does its own imports")
    # Garbage collections in the forks would write to the shared pages.
    gc.collect()
    gc.freeze()


class SystemRandomID(ActorClassID):
    """Ray's id of an actor class, drawn from the system instead of Ray's generator of all ids."""

    @classmethod
    def from_random(cls) -> ActorClassID:
        return ActorClassID(os.urandom(ActorClassID.size()))


def drawn_in_a_fork() -> bytes:
    """Draw an id with Ray in a fork of this process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, UniqueID.from_random().binary())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        drawn = file.read()
    os.waitpid(pid, 0)
    return drawn


def main(listener: int) -> None:
    """Serve at this listening socket. In a fork: run the process that the client requested."""
    os.setpgid(0, 0)
    preload()
    program = ForkServer(socket.socket(fileno=listener), int(os.environ["RAY_RAYLET_PID"])).serve()
    if program is None:
        return
    try:
        program()
    finally:
        # At the end of the interpreter, modules complain about objects that were not collected.
        gc.unfreeze()


@contextlib.contextmanager
def children_started_with(python: str | None) -> Iterator[None]:
    """Make `multiprocessing` spawn with this command instead of the interpreter. None changes nothing."""
    if python is None:
        yield
        return
    interpreter = multiprocessing.spawn.get_executable()
    with tempfile.TemporaryDirectory(prefix="aer-") as folder:
        # It accepts only the path of one executable file without arguments.
        script = Path(folder, "python")
        script.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        script.chmod(0o700)
        multiprocessing.set_executable(str(script))
        try:
            yield
        finally:
            multiprocessing.set_executable(interpreter)
