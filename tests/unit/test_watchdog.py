"""Waits end with the result, the cause, or the time limit."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from ray.exceptions import RayActorError, RayTaskError

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer.integration import watchdog
from verl_aer.integration.watchdog import (
    GenerationTimeoutError,
    ProgressLimit,
    Watchdog,
    WatchdogMixin,
    WeightUpdateTimeoutError,
    WorkerDiedError,
    call_with_limit,
    failure_of,
    last_checkpoint,
    storage_units,
)


class FakeActor:
    """Answers a probe as it is told: "busy" (not at all), None or a text (alive), or an exception (dead)."""

    def __init__(self, answer):
        self.answer = answer
        self.probes = 0
        self.__ray_call__ = SimpleNamespace(remote=self._probe)

    def _probe(self, function):
        assert function is failure_of
        self.probes += 1
        return self, self.probes


@pytest.fixture
def ray_of_fakes(monkeypatch):
    def wait(probes, num_returns, timeout):
        assert timeout == 0, "the watchdog must not wait"
        return [probe for probe in probes if probe[0].answer != "busy"], []

    def get(probe):
        if isinstance(probe[0].answer, Exception):
            raise probe[0].answer
        return probe[0].answer

    monkeypatch.setattr(watchdog, "ray", SimpleNamespace(wait=wait, get=get))
    monkeypatch.setattr(watchdog, "PROBE_SECONDS", 0.0)


@pytest.mark.usefixtures("ray_of_fakes")
def test_busy_and_healthy_actors_are_left_alone():
    busy, healthy = FakeActor("busy"), FakeActor(None)
    dog = Watchdog()
    dog.watch("actor worker", [busy, healthy])
    dog.check()
    dog.check()
    # The busy one still owes the first answer; the healthy one is asked again after each.
    assert (busy.probes, healthy.probes) == (1, 3)


@pytest.mark.usefixtures("ray_of_fakes")
def test_a_dead_actor_is_named_by_role_and_rank():
    dog = Watchdog()
    dog.watch("actor worker", [FakeActor(None), FakeActor(RayActorError())])
    with pytest.raises(WorkerDiedError, match="actor worker 1 died: The actor"):
        dog.check()


@pytest.mark.usefixtures("ray_of_fakes")
def test_an_actor_without_its_engine_is_named_with_the_reason():
    dog = Watchdog()
    dog.watch("server of rollout replica 1,", [FakeActor("its engine died: out of memory")])
    with pytest.raises(WorkerDiedError, match="server of rollout replica 1, 0 failed: its engine died: out of memory"):
        dog.check()


@pytest.mark.usefixtures("ray_of_fakes")
def test_actors_are_asked_once_in_a_while_only(monkeypatch):
    monkeypatch.setattr(watchdog, "PROBE_SECONDS", 3600.0)
    actor = FakeActor(None)
    dog = Watchdog()
    dog.watch("agent worker", [actor])
    for _ in range(100):
        dog.check()
    # One probe when it is added, one after the first check.
    assert actor.probes == 2


@pytest.mark.parametrize(
    ("actor", "failure"),
    [
        (SimpleNamespace(), "None"),
        (SimpleNamespace(engine=SimpleNamespace(errored=False)), "None"),
        (SimpleNamespace(weight_update_error=None), "None"),
        (SimpleNamespace(engine=SimpleNamespace(errored=True, dead_error="killed.")), "its engine died: killed. "),
        (
            SimpleNamespace(weight_update_error="KeyError('lm_head')", engine=SimpleNamespace(errored=False)),
            "it could not load the actor's weights: KeyError('lm_head')",
        ),
        # The update failed because the engine had died: that is the cause.
        (
            SimpleNamespace(
                weight_update_error="EngineDeadError()", engine=SimpleNamespace(errored=True, dead_error="killed.")
            ),
            "its engine died: killed. ",
        ),
    ],
)
def test_what_a_living_actor_says_about_itself(actor, failure):
    assert str(failure_of(actor)).startswith(failure)


def test_a_call_in_time_gives_its_result():
    assert call_with_limit(lambda: "done", 60, Watchdog()) == "done"


def test_an_error_of_the_call_is_raised_as_it_is():
    def fail():
        raise KeyError("lm_head")

    with pytest.raises(KeyError, match="lm_head"):
        call_with_limit(fail, 60, Watchdog())


def test_a_call_without_an_end_ends_at_the_limit_and_says_which_key_moves_it():
    never = threading.Event()
    start = time.monotonic()
    with pytest.raises(
        WeightUpdateTimeoutError, match=r"within 0\.1 s.*raise entropy\.watchdog\.weight_sync_timeout_s"
    ):
        call_with_limit(never.wait, 0.1, Watchdog())
    assert time.monotonic() - start < 5
    never.set()


@pytest.mark.usefixtures("ray_of_fakes")
def test_a_death_during_the_call_ends_the_wait_long_before_the_limit():
    never = threading.Event()
    dog = Watchdog()
    dog.watch("actor worker", [FakeActor(RayActorError())])
    with pytest.raises(WorkerDiedError, match="actor worker 0"):
        call_with_limit(never.wait, 3600, dog)
    never.set()


def test_generation_is_stopped_only_when_nothing_was_finished_for_too_long():
    limit = ProgressLimit(seconds=1.0, poll_interval=0.25)
    for finished in range(20):
        limit.check(f"{finished} finished")
    # Four more polls are one second, which is allowed; the fifth is not.
    for _ in range(4):
        limit.check("19 finished")
    with pytest.raises(
        GenerationTimeoutError, match=r"within 1 s, with 19 finished.*entropy\.watchdog\.rollout_timeout_s"
    ):
        limit.check("19 finished")


def test_generation_without_a_limit_waits_for_ever():
    limit = ProgressLimit(seconds=None, poll_interval=1e9)
    for _ in range(3):
        limit.check("0 finished")


def test_the_last_good_checkpoint_is_the_one_that_verl_marked_complete(tmp_path):
    config = OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path)}})
    (tmp_path / "global_step_4").mkdir()
    assert last_checkpoint(config) == "No checkpoint was written (trainer.save_freq)."
    (tmp_path / "global_step_2" / "actor").mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2")
    assert last_checkpoint(config) == f"The last good checkpoint is {tmp_path}/global_step_2."


def test_a_checkpoint_that_has_lost_its_actor_is_not_called_good(tmp_path):
    config = OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path)}})
    (tmp_path / "global_step_2").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2")
    said = last_checkpoint(config)
    assert said.startswith(f"The last complete checkpoint, {tmp_path}/global_step_2, has no actor")
    assert "trainer.max_actor_ckpt_to_keep" in said


@pytest.mark.usefixtures("ray_of_fakes")
def test_an_actor_that_cannot_be_asked_is_given_up_once_and_ends_nothing(caplog):
    healthy, foreign = FakeActor(None), FakeActor(RayTaskError("failure_of", "no module named verl_aer", "cause"))
    dog = Watchdog()
    dog.watch("reward worker", [foreign, healthy])
    for _ in range(3):
        dog.check()
    assert (foreign.probes, healthy.probes) == (1, 4)
    assert [record.getMessage()[:15] for record in caplog.records] == ["reward worker 0"]


def watched_config():
    return OmegaConf.create(
        {
            "trainer": {"v1": {"sampler": {"sampler_kwargs": {}}}, "default_local_dir": "/nowhere"},
            "actor_rollout_ref": {"nccl_timeout": 600},
        }
    )


class Buffer:
    """Has what the watchdog uses of veRL's replay buffer."""

    poll_interval = 1.0

    def __init__(self):
        self.pending_keys = self.running_keys = self.finished_keys = self.failure_keys = {"train": []}
        self.partitions = {"train": []}
        self.waits = []

    def _wait_for_next_poll(self, *args, **kwargs):
        self.waits.append((args, kwargs))
        return 7.0


class BareBuffer:
    """A custom sampler that waits in its own way."""

    poll_interval = 1.0


class UncountedBuffer(Buffer):
    """A release of veRL that counts otherwise."""

    def __init__(self):
        super().__init__()
        del self.pending_keys


class Trainer:
    """Stands for veRL's trainer, with everything that the watchdog looks for."""

    def __init__(self, buffer=None):
        self.config = watched_config()
        self.entropy_config = SimpleNamespace(
            watchdog=SimpleNamespace(rollout_timeout_s=2.0, weight_sync_timeout_s=None)
        )
        self.sent = []
        self.actor_rollout_wg = SimpleNamespace(workers=[FakeActor(None)])
        self.checkpoint_manager = SimpleNamespace(update_weights=self._send)
        self.buffer = buffer or Buffer()

    def _send(self, *args, **kwargs):
        self.sent.append((args, kwargs))
        return "sent"

    def _build_replay_buffer(self):
        return self.buffer

    def _setup(self):
        pass

    def get_reward_handles(self):
        return [FakeActor(None)]

    def _rollout_server_managers(self):
        replica = SimpleNamespace(replica_rank=0, servers=[FakeActor(None)])
        return [SimpleNamespace(get_replicas=lambda: [replica])]

    def fit(self, agent_loop_manager):
        self.fitted = True


class Watched(WatchdogMixin, Trainer):
    pass


@pytest.fixture
def transfer_queue(monkeypatch, ray_of_fakes):
    """TransferQueue with a controller and a storage unit."""
    watchdog.ray.get_actor = lambda name, namespace: FakeActor(None)
    units = {"SimpleStorage": {0: FakeActor(None)}}
    monkeypatch.setattr(watchdog.transfer_queue.interface, "_TQ_STORAGE", units)


MANAGER = SimpleNamespace(agent_loop_workers=[FakeActor(None)])


def run(trainer, manager=MANAGER) -> list[str]:
    """The roles that are watched, after everything that a run does."""
    trainer._build_replay_buffer()
    trainer._setup()
    trainer.fit(manager)
    assert trainer.fitted
    return sorted(trainer._watchdog._roles.values())


ALL_ROLES = [
    "TransferQueue controller 0",
    "TransferQueue storage unit 0",
    "actor worker 0",
    "agent worker 0",
    "reward worker 0",
    "server of rollout replica 0, 0",
]


@pytest.mark.usefixtures("transfer_queue")
def test_everything_is_watched_where_everything_is_there(caplog):
    assert run(Watched()) == ALL_ROLES
    assert caplog.records == []


def lose(name):
    def change(trainer, monkeypatch):
        raising = property(lambda self: (_ for _ in ()).throw(AttributeError(name)))
        monkeypatch.setattr(Watched, name, raising, raising=False)

    return change


def lose_storage(trainer, monkeypatch):
    monkeypatch.delattr(watchdog.transfer_queue.interface, "_TQ_STORAGE")


def lose_controller(trainer, monkeypatch):
    monkeypatch.delattr(watchdog.ray, "get_actor")


LOST = {
    "server": (lose("_rollout_server_managers"), "the rollout servers"),
    "reward": (lose("get_reward_handles"), "the reward workers"),
    "TransferQueue storage": (lose_storage, "TransferQueue's storage units"),
    "TransferQueue controller": (lose_controller, "TransferQueue's controller"),
}


@pytest.mark.usefixtures("transfer_queue")
@pytest.mark.parametrize("role", LOST)
def test_what_verl_may_rename_is_not_watched_and_said_once(monkeypatch, caplog, role):
    change, what = LOST[role]
    trainer = Watched()
    change(trainer, monkeypatch)
    assert run(trainer) == [name for name in ALL_ROLES if not name.startswith(role)]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the watchdog does not watch {what}: AttributeError: ")


@pytest.mark.usefixtures("transfer_queue")
@pytest.mark.parametrize("manager", [SimpleNamespace(), SimpleNamespace(agent_loop_workers=["a thread"])])
def test_a_custom_agent_loop_manager_without_ray_actors_runs(caplog, manager):
    trainer = Watched()
    run(trainer, manager)
    trainer._watchdog.check()
    (record,) = caplog.records
    assert record.getMessage().startswith("the watchdog does not watch the agent workers: AttributeError: ")


@pytest.mark.usefixtures("transfer_queue")
def test_a_custom_sampler_with_a_wait_of_its_own_runs(caplog):
    buffer = BareBuffer()
    assert run(Watched(buffer)) == ALL_ROLES
    assert not hasattr(buffer, "_wait_for_next_poll")
    (record,) = caplog.records
    assert record.getMessage().startswith("the watchdog does not watch the wait for rollouts: AttributeError: ")


@pytest.mark.usefixtures("transfer_queue")
@pytest.mark.parametrize("arguments", [(("train", 1.0), {}), ((), {"partition_id": "train", "now": 2.0, "new": 3})])
def test_a_poll_hands_its_arguments_on_and_is_limited(arguments):
    args, kwargs = arguments
    trainer = Watched()
    buffer = trainer._build_replay_buffer()
    for _ in range(3):
        assert buffer._wait_for_next_poll(*args, **kwargs) == 7.0
    assert buffer.waits == [arguments] * 3
    with pytest.raises(GenerationTimeoutError):
        buffer._wait_for_next_poll(*args, **kwargs)


@pytest.mark.usefixtures("transfer_queue")
def test_a_buffer_that_cannot_be_counted_has_no_limit_but_its_processes_are_watched(caplog):
    trainer = Watched(UncountedBuffer())
    buffer = trainer._build_replay_buffer()
    for _ in range(9):
        assert buffer._wait_for_next_poll("train", 1.0) == 7.0
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "the watchdog does not watch the time that generation takes: AttributeError: "
    )
    trainer._watchdog.watch("actor worker", [FakeActor(RayActorError())])
    with pytest.raises(WorkerDiedError):
        buffer._wait_for_next_poll("train", 1.0)


@pytest.mark.usefixtures("transfer_queue")
def test_weight_updates_keep_whatever_arguments_verl_gives_them():
    trainer = Watched()
    trainer._build_replay_buffer()
    trainer._setup()
    assert trainer.checkpoint_manager.update_weights(3, mode="delta") == "sent"
    assert trainer.checkpoint_manager.update_weights() == "sent"
    assert trainer.sent == [((3,), {"mode": "delta"}), ((), {})]


@pytest.mark.usefixtures("transfer_queue")
def test_a_checkpoint_manager_that_updates_otherwise_runs(caplog):
    trainer = Watched()
    trainer.checkpoint_manager = SimpleNamespace()
    assert run(trainer) == ALL_ROLES
    (record,) = caplog.records
    assert "the time that weight updates take: AttributeError" in record.getMessage()


def test_storage_units_of_another_process_are_none(monkeypatch):
    monkeypatch.setattr(watchdog.transfer_queue.interface, "_TQ_STORAGE", None)
    assert storage_units() == []
