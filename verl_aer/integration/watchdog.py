"""End a run that can make no more progress, with the reason, where veRL would wait forever.

Two waits of veRL's v1 trainers have no limit:

* ``CheckpointEngineManager.update_weights``: the sender waits for an acknowledgement. A rollout server that
  fails to load the weights, or dies, never sends one.
* ``ReplayBuffer.sample``: it polls until enough prompts are done. Prompts of an agent worker that died never
  are, and those of a server that died come back without trajectories.

Both waits look after the processes that they depend on here, and have a limit: ``entropy.watchdog``. A weight update
may take ``weight_sync_timeout_s``, by default ``actor_rollout_ref.nccl_timeout`` (veRL's key for operations of the
process group, 600); generation may take as long as rollouts are finished now and then, at least one in
``rollout_timeout_s``.

What cannot be watched, as a custom agent-loop manager or sampler lacks it or another release of veRL names it
otherwise, is a warning, and the run continues without that watch.

Where veRL does not wait but raises, its error is often only what a dead process looks like from the driver (a
batch without a single trajectory, say). The dead process is then named as the cause, with that error above it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
import transfer_queue
import transfer_queue.interface
from omegaconf import DictConfig
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from verl_aer.config.schema import EntropyConfig
from verl_aer.errors import VerlAerError
from verl_aer.integration.checkpoint import latest_checkpoint

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

PROBE_SECONDS = 1.0
"""Between two looks at the processes of a run."""
DEATH_SECONDS = 5.0
"""Until a death is known everywhere: vLLM's client hears of its engine's, and Ray of an actor's, within two."""

logger = logging.getLogger(__name__)


class RunStoppedError(VerlAerError, RuntimeError):
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
            except RayTaskError as error:
                logger.warning("%s cannot be asked how it is, and is watched no longer: %s", self._roles[actor], error)
                continue
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
    """The result of ``call()``, which runs in a separate thread, as long as the run is alive.

    Args:
        call: has no limit; its thread is left behind if it does not end.
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
                "large, raise entropy.watchdog.weight_sync_timeout_s."
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
                "raise entropy.watchdog.rollout_timeout_s."
            )


def rollout_counts(buffer: ReplayBuffer, partition_id: str, *_: Any, **__: Any) -> str:
    """What the buffer holds of a partition, by state: of prompts, and of finished trajectories.

    Called with all arguments of the buffer's own wait, of which the partition is one.
    """
    states = ("pending", "running", "finished", "failure")
    prompts = ", ".join(f"{len(getattr(buffer, f'{state}_keys')[partition_id])} {state}" for state in states)
    return f"{prompts} prompts and {len(buffer.partitions[partition_id])} trajectories"


def last_checkpoint(config: DictConfig) -> str:
    """Where a stopped run can be resumed from, in words."""
    folder = latest_checkpoint(config)
    if folder is None:
        return "No checkpoint was written (trainer.save_freq)."
    # veRL removes an older actor once it has written the next one, and marks that checkpoint complete later.
    if not (folder / "actor").exists():
        return (
            f"The last complete checkpoint, {folder}, has lost its actor to the next one, which is not complete: "
            "raise trainer.max_actor_ckpt_to_keep."
        )
    return f"The last good checkpoint is {folder}."


def storage_units() -> list[ActorHandle]:
    """TransferQueue's storage units that this process has started, which have no public name.

    Without them, and without its controller, every reader and writer tries again for ten minutes.
    """
    return list((transfer_queue.interface._TQ_STORAGE or {}).get("SimpleStorage", {}).values())


@contextmanager
def watched(what: str) -> Iterator[None]:
    """Turn any exception of the block into a warning: the run continues, without a watch of ``what``."""
    try:
        yield
    except Exception as error:
        _not_watched(what, error)


def _not_watched(what: str, error: Exception) -> None:
    logger.warning("the watchdog does not watch %s: %s: %s", what, type(error).__name__, error)


def watched_poll(
    poll: Callable[..., float], watchdog: Watchdog, limit: ProgressLimit, counts: Callable[..., str]
) -> Callable[..., float]:
    """``poll``, the wait of a replay buffer, with a look at the processes and at what was finished before it.

    Args:
        counts: what the buffer holds, in words, from the arguments of ``poll``. Once it raises, it is asked no more.
    """
    is_limited = True

    def check_and_wait(*args: Any, **kwargs: Any) -> float:
        nonlocal is_limited
        watchdog.check()
        if is_limited:
            try:
                progress = counts(*args, **kwargs)
            except Exception as error:
                is_limited = False
                _not_watched("the time that generation takes", error)
            else:
                limit.check(progress)
        return poll(*args, **kwargs)

    return check_and_wait


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
        with watched("the wait for rollouts"):
            self._watch_poll(buffer)
        return buffer

    def _watch_poll(self, buffer: ReplayBuffer) -> None:
        sampler_kwargs = self.config.trainer.v1.sampler.sampler_kwargs
        buffer.poll_interval = sampler_kwargs.get("poll_interval", buffer.poll_interval)
        limit = ProgressLimit(self.entropy_config.watchdog.rollout_timeout_s, buffer.poll_interval)
        buffer._wait_for_next_poll = watched_poll(
            buffer._wait_for_next_poll, self._watchdog, limit, partial(rollout_counts, buffer)
        )

    def _setup(self) -> None:
        super()._setup()
        watch = self._watchdog.watch
        with watched("the actor workers"):
            watch("actor worker", self.actor_rollout_wg.workers)
        with watched("the reward workers"):
            watch("reward worker", self.get_reward_handles() or [])
        with watched("TransferQueue's controller"):
            watch("TransferQueue controller", [ray.get_actor("TransferQueueController", namespace="transfer_queue")])
        with watched("TransferQueue's storage units"):
            watch("TransferQueue storage unit", storage_units())
        with watched("the rollout servers"):
            for manager in self._rollout_server_managers():
                for replica in manager.get_replicas():
                    watch(f"server of rollout replica {replica.replica_rank},", replica.servers)
        for name in ("checkpoint_manager", "standalone_checkpoint_manager"):
            if hasattr(self, name):
                with watched("the time that weight updates take"):
                    self._limit_weight_updates(getattr(self, name))

    def _limit_weight_updates(self, manager: Any) -> None:
        update_weights = manager.update_weights
        seconds = self.entropy_config.watchdog.weight_sync_timeout_s or self.config.actor_rollout_ref.nccl_timeout

        def update_weights_in_time(*args: Any, **kwargs: Any) -> Any:
            return call_with_limit(lambda: update_weights(*args, **kwargs), seconds, self._watchdog)

        manager.update_weights = update_weights_in_time

    def fit(self, agent_loop_manager: Any) -> None:
        with watched("the agent workers"):
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
