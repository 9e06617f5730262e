"""The watchdog with real Ray actors: busy, dead, and without their engine."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import pytest
import ray
from omegaconf import OmegaConf

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer.integration.watchdog import Watchdog, WatchdogMixin, WorkerDiedError

pytestmark = [
    pytest.mark.e2e,
    # Ray's own sockets and files, closed at shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(ray_temp_dir):
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=str(ray_temp_dir))
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Server:
    """Stands in for a rollout server, whose engine may die before it does."""

    def __init__(self):
        self.engine = SimpleNamespace(errored=False, dead_error="killed.")

    def pid(self):
        return os.getpid()

    def lose_engine(self):
        self.engine.errored = True

    def work(self, seconds):
        time.sleep(seconds)


def test_a_busy_actor_is_not_taken_for_dead():
    server = Server.remote()
    ray.get(server.pid.remote())
    dog = Watchdog()
    work = server.work.remote(4)
    dog.watch("server", [server])
    dog.check_for(3)
    ray.get(work)


def test_a_killed_actor_ends_the_wait_within_seconds():
    servers = [Server.remote(), Server.remote()]
    pids = ray.get([server.pid.remote() for server in servers])
    dog = Watchdog()
    dog.watch("server", servers)
    dog.check_for(1.5)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="server 1 died"):
        dog.check_for(30)


def test_a_server_without_its_engine_ends_the_wait():
    server = Server.remote()
    dog = Watchdog()
    dog.watch("server", [server])
    ray.get(server.lose_engine.remote())
    with pytest.raises(WorkerDiedError, match=r"server 0 failed: its engine died: killed\."):
        dog.check_for(30)


class Trainer:
    """Stands in for veRL's: its wait ends by itself when the generation fails, before anyone has looked."""

    def fit(self, agent_loop_manager):
        ray.get(agent_loop_manager.server.lose_engine.remote())
        raise RuntimeError("no materializable trajectories")


class WatchedTrainer(WatchdogMixin, Trainer):
    def __init__(self):
        self._watchdog = Watchdog()
        self.config = OmegaConf.create({"trainer": {"default_local_dir": "/nowhere"}})


def test_an_error_that_follows_from_a_death_names_the_death_last():
    server = Server.remote()
    trainer = WatchedTrainer()
    trainer._watchdog.watch("server", [server])
    with pytest.raises(WorkerDiedError, match=r"server 0 failed.* No checkpoint was written") as raised:
        trainer.fit(SimpleNamespace(agent_loop_workers=[], server=server))
    assert "no materializable" in str(raised.value.__context__)


def test_an_error_of_a_healthy_run_stays_itself(monkeypatch):
    monkeypatch.setattr("verl_aer.integration.watchdog.DEATH_SECONDS", 1.5)
    server = Server.remote()
    trainer = WatchedTrainer()
    trainer._watchdog.watch("server", [Server.remote()])
    with pytest.raises(RuntimeError, match="no materializable") as raised:
        trainer.fit(SimpleNamespace(agent_loop_workers=[], server=server))
    assert not isinstance(raised.value, WorkerDiedError)
