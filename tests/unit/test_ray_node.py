"""Ray on one node: its address, free ports, and rejected input."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import pytest

from verl_aer.launch.ray_node import (
    LEAST_CPUS,
    NodeError,
    address_of,
    address_towards,
    cpu_slots,
    free_ports,
    host_and_port,
    interface_addresses,
    keep_logs,
    main,
    own_address,
    ray_start_command,
    split_host,
)

ADDRESSES = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["10.0.0.1"],
    "ib0": ["10.1.0.1", "fd00::1"],
    "ib1": ["fd00::2"],
    "docker0": [],
}


def test_an_interface_gives_its_address_and_ipv4_goes_before_ipv6():
    assert [address_of(name, ADDRESSES) for name in ("eth0", "ib0", "ib1")] == ["10.0.0.1", "10.1.0.1", "fd00::2"]


@pytest.mark.parametrize("name", ["ib7", "docker0"])
def test_an_interface_without_an_address_is_named_with_those_that_have_one(name):
    with pytest.raises(NodeError, match=f"no interface {name} with an address; it has eth0, ib0, ib1, lo"):
        address_of(name, ADDRESSES)


def test_this_machines_interfaces_have_their_addresses():
    assert interface_addresses()["lo"][0] == "127.0.0.1"
    assert own_address("lo", peer="") == "127.0.0.1"


def test_without_an_interface_the_route_to_the_peer_decides():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert own_address("", peer="localhost") == "127.0.0.1"
    assert own_address("", peer="") == "127.0.0.1"


def test_a_peer_that_nobody_knows_is_named():
    with pytest.raises(NodeError, match="cannot resolve no-such-node"):
        address_towards("no-such-node.invalid")


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "[fd00::1]:6379"])
def test_addresses_are_written_and_read_alike(address):
    assert host_and_port(split_host(address), 6379) == address


def test_ports_are_free_and_different_even_where_somebody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = free_ports("127.0.0.1", 20)
        assert len(set(ports)) == 20
        assert taken.getsockname()[1] not in ports


def arguments(role: str, **more: object) -> argparse.Namespace:
    given = {"role": role, "address": "10.0.0.1:5", "cpus": None, "gpus": None, "dashboard": False}
    return argparse.Namespace(**{**given, "temp_dir": Path("/tmp/ray-7"), **more})


def test_every_port_that_ray_listens_on_is_chosen():
    head = ray_start_command(arguments("head", dashboard=True), "127.0.0.1")
    options = dict(word.removeprefix("--").partition("=")[::2] for word in head if word.startswith("--"))
    names = ["port", "dashboard-agent-listen-port", "metrics-export-port", "dashboard-port", "ray-client-server-port"]
    assert len({int(options[name]) for name in names}) == len(names)
    # Ray's own defaults, where a neighbour's Ray listens.
    assert not {6379, 52365, 8265, 10001} & {int(options[name]) for name in names}
    assert (options["min-worker-port"], options["max-worker-port"]) == ("0", "0")
    assert (options["temp-dir"], options["include-dashboard"]) == ("/tmp/ray-7", "true")
    assert "num-gpus" not in options
    worker = ray_start_command(arguments("worker", gpus=2, cpus=3), "127.0.0.1")
    assert {"--address=10.0.0.1:5", "--num-gpus=2", "--num-cpus=3"} <= set(worker)
    assert "--head" not in worker


def test_cpu_slots_are_slurms_but_enough(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    assert cpu_slots(None) == LEAST_CPUS
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "96")
    assert cpu_slots(None) == 96
    assert cpu_slots(2) == 2


def test_the_ends_of_rays_logs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("verl_aer.launch.ray_node.LOG_TAIL_BYTES", 4)
    logs = tmp_path / "ray" / "session_2026" / "logs"
    logs.mkdir(parents=True)
    (logs / "worker.err").write_text("123456789")
    (logs / "empty.out").touch()
    keep_logs(tmp_path / "ray", tmp_path / "kept")
    assert {path.name: path.read_text() for path in (tmp_path / "kept").iterdir()} == {"worker.err": "6789"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head", "--temp-dir", "/tmp/r"], "a head needs --address-file, a worker needs --address"),
        (["worker", "--temp-dir", "/tmp/r"], "a head needs --address-file, a worker needs --address"),
        (["worker", "--address", "a:1", "--temp-dir", "/tmp/" + "r" * 40], "longer than 40 characters"),
    ],
)
def test_bad_usage_is_an_error(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err


def test_a_node_that_cannot_be_reached_ends_with_2(tmp_path, capsys):
    words = [
        "head",
        "--address-file",
        str(tmp_path / "a"),
        "--temp-dir",
        str(tmp_path / "r")[-30:],
        "--interface",
        "ib9",
    ]
    assert main(words) == 2
    assert "has no interface ib9" in capsys.readouterr().err
