"""The forked interpreter behaves like Python, and starts with its imports done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from verl_aer.forking.python import KEPT, address, server_environment

COMMAND = [sys.executable, "-m", "verl_aer.forking.python"]
PRELOADED = "plistlib"
"""A module that Python does not import by itself."""

SERVER = """
from verl_aer.forking import server as fork_server
fork_server.PRELOADED = ("MODULE",)
fork_server.main(LISTENER)
"""
REPORT = f"""
import json, os, sys
print(json.dumps({{
    "arguments": sys.argv, "name": __name__, "preloaded": "{PRELOADED}" in sys.modules, "parent": os.getppid(),
    "environment": dict(os.environ), "folder": os.getcwd(), "input": sys.stdin.read(),
}}))
sys.exit(7)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets and pidfds are Linux's")


@contextmanager
def ray_node(job, module, **variables):
    """The environment of the workers of a Ray node that has a fork server, and the server's process."""
    node = subprocess.Popen(["sleep", "600"])
    environment = {**os.environ, "RAY_RAYLET_PID": str(node.pid), "RAY_JOB_ID": job, **variables}
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment)
        listener.bind(address())
        listener.listen()
        code = SERVER.replace("MODULE", module).replace("LISTENER", str(listener.fileno()))
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=server_environment(),
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
    yield environment, process
    node.kill()
    node.wait()


ACTOR = f"""
import numpy.random, ray, {PRELOADED}

@ray.remote
class Actor:
    pass
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "actor_at_import.py").write_text(ACTOR)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with ray_node("01", "actor_at_import", PYTHONPATH=path) as (environment, process):
        yield environment, process
    # It ends with its node.
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


def forked(server, *arguments, **options):
    return subprocess.run([*COMMAND, *arguments], env=server[0], capture_output=True, text=True, timeout=60, **options)


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_script_runs_as_in_any_python_with_its_imports_done(server, tmp_path):
    environment, process = server
    script = tmp_path / "script.py"
    script.write_text(REPORT)
    result = subprocess.run(
        [*COMMAND, str(script), "a", "b c"],
        env={**environment, "COLOR": "green"},
        cwd=tmp_path,
        input="hello",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 7, result.stderr
    assert json.loads(result.stdout) == {
        "arguments": [str(script), "a", "b c"],
        "name": "__main__",
        "preloaded": True,
        "parent": process.pid,
        "environment": {KEPT: "1", **environment, "COLOR": "green"},
        "folder": str(tmp_path),
        "input": "hello",
    }


def test_code_runs_after_options_that_are_left_out(server):
    result = forked(server, "-s", "-W", "-X", "faulthandler", "-c", "import sys; print(sys.argv, __name__)", "a")
    assert result.stdout == "['-c', 'a'] __main__\n", result.stderr


def test_an_error_is_pythons_own(server):
    result = forked(server, "-c", "1 / 0")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_files_keep_their_numbers(server, tmp_path):
    with open(tmp_path / "out", "w") as out:
        code = f"import os; os.write({out.fileno()}, b'here')"
        assert forked(server, "-c", code, pass_fds=[out.fileno()]).returncode == 0
    assert (tmp_path / "out").read_text() == "here"


def test_a_signal_reaches_the_fork_and_the_client_ends_like_it(server):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    client = subprocess.Popen([*COMMAND, "-c", code], env=server[0], stdout=subprocess.PIPE, text=True)
    fork = int(client.stdout.readline())
    assert os.getpgid(fork) == os.getpgid(client.pid)
    client.send_signal(signal.SIGTERM)
    assert client.wait(30) == -signal.SIGTERM
    assert not Path(f"/proc/{fork}").exists()
    client.stdout.close()


def test_a_fork_ends_with_a_client_that_is_killed(server):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    client = subprocess.Popen([*COMMAND, "-c", code], env=server[0], stdout=subprocess.PIPE, text=True)
    fork = int(client.stdout.readline())
    client.kill()
    client.wait()
    client.stdout.close()
    wait_until(lambda: not Path(f"/proc/{fork}").exists())


def test_outside_of_ray_it_is_plain_python():
    environment = {key: value for key, value in os.environ.items() if key != "RAY_RAYLET_PID"}
    code = f"import sys; print('{PRELOADED}' in sys.modules)"
    result = subprocess.run([*COMMAND, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout == "False\n", result.stderr


def test_a_server_that_cannot_import_leaves_plain_python():
    with ray_node("02", "no_such_module") as (environment, process):
        result = forked((environment, process), "-c", "print(1)")
        assert result.stdout == "1\n", result.stderr
        assert "no_such_module" in process.communicate(timeout=30)[1]


SPAWN = f"""
import multiprocessing, os, sys
from verl_aer.forking.server import children_started_with

def report():
    print(os.getppid(), "{PRELOADED}" in sys.modules, flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with children_started_with(sys.argv[1]):
        child = context.Process(target=report)
        child.start()
        child.join()
    assert multiprocessing.spawn.get_executable().decode() == sys.executable
    sys.exit(child.exitcode)
"""


def test_multiprocessing_spawns_with_it(server, tmp_path):
    environment, process = server
    script = tmp_path / "script.py"
    script.write_text(SPAWN)
    result = subprocess.run(
        [sys.executable, str(script), " ".join(COMMAND)],
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.stdout == f"{process.pid} True\n", result.stderr
    assert result.returncode == 0


@pytest.mark.parametrize("title", ["setproctitle", "ray._raylet"])
def test_a_fork_can_change_its_title(server, title):
    code = f"import {title} as module; module.setproctitle('new title'); print(open('/proc/self/cmdline').read())"
    # A fork's children have the server's first variable too.
    environment = {KEPT: "1", "RAY_RAYLET_PID": server[0]["RAY_RAYLET_PID"], "RAY_JOB_ID": "01", "COLOR": "green"}
    assert forked((environment, server[1]), "-c", code).stdout.startswith("new title")


def test_forks_draw_different_random_numbers(server):
    code = "import numpy, ray._raylet; print(ray._raylet.UniqueID.from_random().hex(), numpy.random.rand())"
    first, second = (forked(server, "-c", code).stdout.split() for _ in range(2))
    assert len(first) == 2
    assert first[0] != second[0]
    assert first[1] != second[1]
