"""Waits that end: with the result, with the reason, or with the time limit."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from ray.exceptions import RayActorError

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer.integration import watchdog
from verl_aer.integration.watchdog import (
    GenerationTimeoutError,
    ProgressLimit,
    Watchdog,
    WeightUpdateTimeoutError,
    WorkerDiedError,
    call_with_limit,
    failure_of,
    last_checkpoint,
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
    with pytest.raises(WeightUpdateTimeoutError, match=r"within 0\.1 s.*raise entropy\.limits\.weight_update_seconds"):
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
        GenerationTimeoutError, match=r"within 1 s, with 19 finished.*entropy\.limits\.generation_seconds"
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
    (tmp_path / "global_step_2").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2")
    assert last_checkpoint(config) == f"The last good checkpoint is {tmp_path}/global_step_2."
