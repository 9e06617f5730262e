"""Verify answers with math-verify, in one child process per request.

`main` imports math-verify once, then forks a child for each request on its control socket. A child lowers its limits,
answers one request and ends, so that an answer can neither change another verdict nor end this process. The kernel ends
a child at its time limit: SIGALRM without a handler works in any code. This process and its children end with the
caller.

A request is the JSON object {"truth", "answer", "time_limit_s", "memory_limit_bytes"}. With `answer` null it checks
whether the truth can be read and compared. The reply is one of `replies`.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
import warnings

from verl_aer._processes import die_with_parent
from verl_aer.rewards import replies, symbolic

READY = b"ready"
REQUEST_BYTES = 65536
ANY_ANSWER = "7"
"""Answer for checking a ground truth: 9^{9^{9^9}} can be read but not compared."""

MEMORY_SHARE_OF_A_FAILURE = 0.25
"""SymPy and math-verify continue after a MemoryError. Large integers and lists grow by doubling, so a process that was
refused memory has used at least this share of its limit. An ordinary answer needs a hundredth of it."""


def _verdict(truth_text: str, answer_text: str | None) -> str:
    truth = symbolic.read(truth_text)
    if truth is None:
        return replies.TRUTH_UNREADABLE
    answer = symbolic.read(ANY_ANSWER if answer_text is None else answer_text)
    if answer is None:
        return replies.ANSWER_UNREADABLE
    equal = symbolic.equal(truth, answer)
    if answer_text is None:
        return replies.READABLE
    return replies.EQUAL if equal else replies.NOT_EQUAL


def _peak_address_space() -> int:
    """Return the peak address space in bytes. Right after the fork, it is the current one."""
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmPeak:"))
    return int(peak.split()[1]) * 1024


def _lower_limits(time_limit_s: float, most_bytes: int) -> None:
    signal.setitimer(signal.ITIMER_REAL, time_limit_s)
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _lift_memory_limit() -> None:
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve(channel: socket.socket) -> None:
    request = json.loads(channel.recv(REQUEST_BYTES))
    start, limit = _peak_address_space(), request["memory_limit_bytes"]
    _lower_limits(request["time_limit_s"], start + limit)
    try:
        verdict = _verdict(request["truth"], request["answer"])
    except MemoryError:
        verdict = replies.MEMORY_LIMIT
    except Exception:
        # SymPy raises arbitrary exceptions for unexpected expressions.
        verdict = replies.COMPARISON_FAILED
    # Sending the reply needs memory too.
    _lift_memory_limit()
    if verdict != replies.EQUAL and _peak_address_space() - start > MEMORY_SHARE_OF_A_FAILURE * limit:
        verdict = replies.MEMORY_LIMIT
    channel.send(verdict.encode())


def _fork(control: socket.socket, channel: socket.socket) -> None:
    parent = os.getpid()
    if os.fork():
        return
    # The child must never return into this process's code.
    try:
        die_with_parent(parent)
        control.close()
        _serve(channel)
    finally:
        os._exit(0)


def main(control_fd: int) -> None:
    """Serve requests until the caller closes its end of the control socket."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    symbolic.warm_up()
    # The kernel reaps the children. Pages that the garbage collector does not touch stay shared with them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    control = socket.socket(fileno=control_fd)
    control.send(READY)
    # Errors of the start are worth reading. Later output depends on the texts of answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as channel:
            _fork(control, channel)
