"""End a run that can make no more progress, with the reason, where veRL would wait for ever.

Two waits of veRL's v1 trainers have no end of their own:

* ``CheckpointEngineManager.update_weights``: the sender waits for an acknowledgement. A rollout server that
  fails to load the weights, or dies, never sends one.
* ``ReplayBuffer.sample``: it polls until enough prompts are done. Prompts of an agent worker that died never
  are, and those of a server that died come back without trajectories.

Both waits look after the processes that they depend on here, and have a limit: ``entropy.limits``. A weight update
may take ``weight_update_seconds``, by default ``actor_rollout_ref.nccl_timeout`` (veRL's key for operations of the
process group, 600); generation may go on for as long as rollouts are finished now and then, at least one in
``generation_seconds``.

Where veRL does not wait but raises, its error is often only what a dead process looks like from the driver (a
batch without a single trajectory, say). The dead process is then named as the cause, with that error above it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import ray
import transfer_queue
import transfer_queue.interface
from omegaconf import DictConfig
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from verl_aer.config.schema import EntropyConfig
from verl_aer.integration.checkpoint import latest_checkpoint

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

PROBE_SECONDS = 1.0
"""Between two looks at the processes of a run."""
DEATH_SECONDS = 5.0
"""Until a death is known everywhere: vLLM's client hears of its engine's, and Ray of an actor's, within two."""


class RunStoppedError(RuntimeError):
    """The run can make no more progress; the message says why."""


class WorkerDiedError(RunStoppedError):
    """A process of the run died, or its engine did; the message names it and says why."""


class WeightUpdateTimeoutError(RunStoppedError):
    """The rollout servers did not acknowledge the actor's weights within the time limit."""


class GenerationTimeoutError(RunStoppedError):
    """No rollout was finished within the time limit."""


def failure_of(actor: Any) -> str | None:
    """Why an actor that still lives can do no more work; None if it can. Runs inside the actor.

    A rollout server outlives its engine: vLLM's client then says ``errored``. The CPU server also keeps the
    error of a weight update in ``weight_update_error``.
    """
    engine = getattr(actor, "engine", None)
    if getattr(engine, "errored", False):
        return (
            f"its engine died: {engine.dead_error} If nothing above says why, something outside the run "
            "killed it, as the system does when memory runs out."
        )
    error = getattr(actor, "weight_update_error", None)
    return None if error is None else f"it could not load the actor's weights: {error}"


class Watchdog:
    """The actors of a run, by role, and one unanswered probe to each.

    A busy actor leaves its probe unanswered, which says nothing; Ray answers for a dead one.
    """

    def __init__(self) -> None:
        self._roles: dict[ActorHandle, str] = {}
        self._probes: dict[ray.ObjectRef, ActorHandle] = {}
        self._next_look = 0.0

    def watch(self, role: str, actors: Iterable[ActorHandle]) -> None:
        """Look after ``actors`` too, under the name ``role`` and their position."""
        for rank, actor in enumerate(actors):
            self._roles[actor] = f"{role} {rank}"
            self._probe(actor)

    def check(self) -> None:
        """Raise if an actor is known to be dead; costs nothing if the last look was just now.

        Raises:
            WorkerDiedError: names the actor and the cause.
        """
        now = time.monotonic()
        if now < self._next_look or not self._probes:
            return
        self._next_look = now + PROBE_SECONDS
        answered, _ = ray.wait(list(self._probes), num_returns=len(self._probes), timeout=0)
        for probe in answered:
            actor = self._probes.pop(probe)
            try:
                failure = ray.get(probe)
            except RayActorError as error:
                raise WorkerDiedError(f"{self._roles[actor]} died: {error}") from error
            if failure is not None:
                raise WorkerDiedError(f"{self._roles[actor]} failed: {failure}")
            self._probe(actor)

    def check_for(self, seconds: float) -> None:
        """`check` again and again: a process that died just now is not yet known to be dead.

        Raises:
            WorkerDiedError: names the actor and the cause.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            time.sleep(0.05)

    def _probe(self, actor: ActorHandle) -> None:
        self._probes[actor.__ray_call__.remote(failure_of)] = actor


def call_with_limit(call: Callable[[], Any], seconds: float, watchdog: Watchdog) -> Any:
    """The result of ``call()``, which runs in a thread of its own, as long as the run is alive.

    Args:
        call: has no end of its own; its thread is left behind if it does not end.
        seconds: time limit.
        watchdog: asked while waiting.

    Raises:
        WeightUpdateTimeoutError: no result after ``seconds``.
        WorkerDiedError: the watchdog found a dead actor.
        Exception: whatever ``call`` raises.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="weight-update", daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive():
        thread.join(timeout=0.02)
        watchdog.check()
        if time.monotonic() > deadline:
            raise WeightUpdateTimeoutError(
                f"no rollout server acknowledged the actor's weights within {seconds:g} s. A server that could "
                "not load them has printed its own error above (look for EngineCore). If the model is merely "
                "large, raise entropy.limits.weight_update_seconds."
            )
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


class ProgressLimit:
    """Ends a wait in which nothing was finished for too long.

    Time counts only where it is waited through, in steps of the poll interval: what a training step takes between two
    waits is not generation's.
    """

    def __init__(self, seconds: float | None, poll_interval: float) -> None:
        self._seconds = seconds
        self._poll_interval = poll_interval
        self._last: Any = None
        self._waited = 0.0

    def check(self, progress: Any) -> None:
        """Call it once a poll with whatever changes when something is finished.

        Raises:
            GenerationTimeoutError: ``progress`` has been the same for longer than the limit.
        """
        self._waited = self._waited + self._poll_interval if progress == self._last else 0.0
        self._last = progress
        if self._seconds is not None and self._waited > self._seconds:
            raise GenerationTimeoutError(
                f"no rollout was finished within {self._seconds:g} s, with {progress}. Look in the log for what the "
                "rollout servers, agent workers and reward workers said last. If single rollouts do take that long, "
                "raise entropy.limits.generation_seconds."
            )


def rollout_counts(buffer: ReplayBuffer, partition_id: str) -> str:
    """What the buffer holds, by state: of prompts, and of finished trajectories."""
    states = ("pending", "running", "finished", "failure")
    prompts = ", ".join(f"{len(getattr(buffer, f'{state}_keys')[partition_id])} {state}" for state in states)
    return f"{prompts} prompts and {len(buffer.partitions[partition_id])} trajectories"


def last_checkpoint(config: DictConfig) -> str:
    """Where a stopped run can be resumed from, in words."""
    folder = latest_checkpoint(config)
    if folder is None:
        return "No checkpoint was written (trainer.save_freq)."
    return f"The last good checkpoint is {folder}."


def transfer_queue_actors() -> list[ActorHandle]:
    """TransferQueue's controller and the storage units that this process has started.

    Without them every reader and writer tries again for ten minutes. TransferQueue has no public name for the
    handles of its storage units.
    """
    units = (transfer_queue.interface._TQ_STORAGE or {}).get("SimpleStorage", {})
    return [ray.get_actor("TransferQueueController", namespace="transfer_queue"), *units.values()]


class WatchdogMixin:
    """The watchdog for any of veRL's v1 trainers; placed before it in a class statement.

    It also applies ``trainer.v1.sampler.sampler_kwargs.poll_interval`` (seconds): veRL's buffers have the
    parameter, 2.0 by default, and the trainer does not set it.
    """

    config: DictConfig
    entropy_config: EntropyConfig

    def _build_replay_buffer(self) -> ReplayBuffer:
        self._watchdog = Watchdog()
        buffer = super()._build_replay_buffer()
        sampler_kwargs = self.config.trainer.v1.sampler.sampler_kwargs
        buffer.poll_interval = sampler_kwargs.get("poll_interval", buffer.poll_interval)
        limit = ProgressLimit(self.entropy_config.limits.generation_seconds, buffer.poll_interval)
        wait_for_next_poll = buffer._wait_for_next_poll

        def check_and_wait(partition_id: str, last_debug_time: float) -> float:
            self._watchdog.check()
            limit.check(rollout_counts(buffer, partition_id))
            return wait_for_next_poll(partition_id, last_debug_time)

        buffer._wait_for_next_poll = check_and_wait
        return buffer

    def _setup(self) -> None:
        super()._setup()
        self._watchdog.watch("actor worker", self.actor_rollout_wg.workers)
        self._watchdog.watch("reward worker", self.get_reward_handles() or [])
        self._watchdog.watch("TransferQueue actor", transfer_queue_actors())
        for manager in self._rollout_server_managers():
            for replica in manager.get_replicas():
                self._watchdog.watch(f"server of rollout replica {replica.replica_rank},", replica.servers)
        for name in ("checkpoint_manager", "standalone_checkpoint_manager"):
            if hasattr(self, name):
                self._limit_weight_updates(getattr(self, name))

    def _limit_weight_updates(self, manager: Any) -> None:
        update_weights = manager.update_weights
        seconds = self.entropy_config.limits.weight_update_seconds or self.config.actor_rollout_ref.nccl_timeout

        def update_weights_in_time(global_steps: int | None = None) -> Any:
            return call_with_limit(lambda: update_weights(global_steps), seconds, self._watchdog)

        manager.update_weights = update_weights_in_time

    def fit(self, agent_loop_manager: Any) -> None:
        self._watchdog.watch("agent worker", agent_loop_manager.agent_loop_workers)
        try:
            self._fit(agent_loop_manager)
        except RunStoppedError as stopped:
            stopped.args = (f"{stopped} {last_checkpoint(self.config)}",)
            raise

    def _fit(self, agent_loop_manager: Any) -> None:
        try:
            super().fit(agent_loop_manager)
        except RunStoppedError:
            raise
        except Exception:
            self._watchdog.check_for(DEATH_SECONDS)
            raise
