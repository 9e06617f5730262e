"""The process that verifies answers with math-verify: one child for each request.

`main` imports math-verify once, then forks a child for each request that comes over its control socket. A child
lowers its limits, answers one request and ends, so that no answer can change another's verdict, and whatever an
answer does, this process lives on. The kernel ends a child that is over its time: SIGALRM without a handler needs no
cooperation of the code that runs. This process ends when its caller does, and its children with it.

A request is the JSON object {"truth", "answer", "time_limit_s", "memory_limit_bytes"}; `answer` null asks whether the
truth can be read and compared. The reply is one of `replies`.
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

from verl_aer._processes import end_with_the_parent
from verl_aer.rewards import replies, symbolic

READY = b"ready"
REQUEST_BYTES = 65536
ANY_ANSWER = "7"
"""Compared with a ground truth that is only to be checked: 9^{9^{9^9}} can be read and never compared."""

MEMORY_SHARE_OF_A_FAILURE = 0.25
"""SymPy and math-verify continue after a MemoryError. Large integers and lists grow by doubling, so that a process to
which memory was refused has had at least this share of its limit. An ordinary answer needs a hundredth of it."""


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
    """Bytes: the most that this process has had, which is what it has now, right after the fork."""
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
        # SymPy raises any kind of exception on unforeseen expressions.
        verdict = replies.COMPARISON_FAILED
    # The reply needs some memory too.
    _lift_memory_limit()
    if verdict != replies.EQUAL and _peak_address_space() - start > MEMORY_SHARE_OF_A_FAILURE * limit:
        verdict = replies.MEMORY_LIMIT
    channel.send(verdict.encode())


def _fork(control: socket.socket, channel: socket.socket) -> None:
    parent = os.getpid()
    if os.fork():
        return
    # Nothing of this process may run on in the child, whatever happens.
    try:
        end_with_the_parent(parent)
        control.close()
        _serve(channel)
    finally:
        os._exit(0)


def main(control_fd: int) -> None:
    """Serve until the caller closes its end of the control socket."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    symbolic.warm_up()
    # Children are reaped by the kernel; a page that no collection touches stays shared with them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    control = socket.socket(fileno=control_fd)
    control.send(READY)
    # What led up to here was worth reading; from now on the texts of answers decide what is written.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as channel:
            _fork(control, channel)
