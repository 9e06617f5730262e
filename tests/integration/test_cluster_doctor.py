"""`verl-aer cluster` with reports of nodes, and with a missing cluster."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from verl_aer.cli.main import main as verl_aer
from verl_aer.launch.cluster_doctor import (
    COMPARED,
    ClusterError,
    Node,
    await_listener,
    clock_offset,
    cluster_checks,
    missing_nodes,
    node_table,
)
from verl_aer.launch.doctor import FAIL, GIB, OK, WARN

NODES = [Node("1", "n1", "10.0.0.1", gpus=8, cpus=64), Node("2", "n2.site", "10.0.0.2", gpus=8, cpus=64)]


def a_report(**changed) -> dict:
    versions = {**dict.fromkeys(COMPARED, "1.0"), **changed.pop("versions", {})}
    whole = {"host": "n", "versions": versions, "errors": {}, "gpus": 8, "shm": 64 * GIB, "clock": 0.01, "shared": ""}
    return {**whole, **changed}


def problems(second: dict) -> list[tuple[str, str]]:
    checks = cluster_checks(NODES, [a_report(), second])
    return [(check.status, f"{check.name}: {check.found}") for check in checks if check.status != OK]


def test_nodes_that_are_alike_have_no_problem():
    assert problems(a_report()) == []


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (
            a_report(versions={"torch": "2.0"}),
            [(FAIL, "torch: versions differ: 1.0 on n1; 2.0 on n2.site")],
        ),
        (
            a_report(versions={"verl_aer": None}),
            [
                (FAIL, "n2.site: verl_aer: not installed"),
                (FAIL, "verl_aer: versions differ: 1.0 on n1; none on n2.site"),
            ],
        ),
        (
            a_report(errors={"vllm": "ImportError: libcuda.so.1"}),
            [(FAIL, "n2.site: vllm: ImportError: libcuda.so.1")],
        ),
        (a_report(gpus=7), [(FAIL, "n2.site: GPUs: torch sees 7 GPU(s), Ray promises 8")]),
        (a_report(shm=2 * GIB), [(WARN, "n2.site: /dev/shm: 2.00 GiB free")]),
        (a_report(shm=64 * 2**20), [(FAIL, "n2.site: /dev/shm: 0.06 GiB free")]),
        (a_report(shared="/runs lacks what n1 wrote"), [(FAIL, "n2.site: shared storage: /runs lacks what n1 wrote")]),
        (a_report(clock=-3.0), [(WARN, "n2.site: clock: -3.0 s from the head's clock")]),
        (a_report(clock=100.0), [(FAIL, "n2.site: clock: +100.0 s from the head's clock")]),
    ],
)
def test_every_problem_of_a_node_is_named(second, found):
    assert problems(second) == found
    assert len(node_table(NODES, [a_report(), second]).rows) == 2


def test_a_machine_without_gpus_promises_slots_that_nobody_counts():
    assert problems(a_report(gpus=0)) == []


def test_nodes_are_missed_by_name_as_often_as_they_are_expected():
    assert missing_nodes(NODES, ["n1", "N2"], 8) == ""
    assert missing_nodes(NODES, ["n1", "n1", "n2"], 8) == "n1 has not joined"
    assert missing_nodes(NODES, ["n3", "n4", "n1", "n2"], 16) == (
        "n3, n4 have not joined; n1 has 8 of 16 GPUs; n2.site has 8 of 16 GPUs"
    )


@pytest.mark.parametrize("ahead", [-120.0, 2.5])
def test_a_clock_is_compared_by_the_fastest_answer(ahead):
    delays = iter([0.05, 0.05, 0.0, 0.05, 0.05])

    def read() -> float:
        time.sleep(next(delays))
        return time.time() + ahead

    assert clock_offset(read) == pytest.approx(ahead, abs=0.01)


def test_a_difference_that_the_answers_time_explains_is_none():
    def read() -> float:
        there = time.time()
        time.sleep(0.02)
        return there

    assert clock_offset(read) == 0.0


@pytest.mark.parametrize("address", ["127.0.0.1:9", "[::1]:9", "nowhere", "localhost:http"])
def test_a_cluster_that_is_not_there_is_one_clear_error(address, capsys):
    assert verl_aer(["cluster", "--address", address]) == 2
    assert f"verl-aer cluster: no Ray cluster answers at {address} (HOST:PORT" in capsys.readouterr().err


def test_a_head_that_starts_late_is_waited_for():
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        threading.Timer(0.5, head.listen).start()
        start = time.monotonic()
        await_listener(address, deadline=start + 20)
        assert time.monotonic() - start > 0.5


def test_a_head_that_never_listens_is_named_at_the_deadline():
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Ray cluster answers at {address}"):
            await_listener(address, deadline=time.monotonic() + 0.2)
