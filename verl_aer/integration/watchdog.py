"""End a run that cannot make progress, and report the cause, where veRL would wait forever.

Two waits of veRL's v1 trainers have no limit:

* ``CheckpointEngineManager.update_weights``: the sender waits for an acknowledgement. A rollout server that fails to
  load the weights, or dies, never sends one.
* ``ReplayBuffer.sample``: it polls until enough prompts are done. Prompts of a dead agent worker never are, and
  prompts of a dead server come back without trajectories.

Here both waits check the processes that they depend on, and have a limit (``entropy.watchdog``). A weight update may
take ``weight_sync_timeout_s``, by default ``actor_rollout_ref.nccl_timeout`` (veRL's key for operations of the process
group, 600). Generation must finish at least one rollout in ``rollout_timeout_s``.

A part that cannot be watched is a warning, and the run continues without that watch. For example, a custom agent-loop
manager may lack the part, or another release of veRL may rename it.

If veRL raises instead of waiting, its error is often only a consequence of a dead process, such as a batch without a
single trajectory. The watchdog then names the dead process as the cause, with veRL's error above it.
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
"""Interval between two checks of a run's processes."""
DEATH_SECONDS = 5.0
"""Time until a death is known everywhere. vLLM's client and Ray report one within two seconds."""

logger = logging.getLogger(__name__)


class RunStoppedError(VerlAerError, RuntimeError):
    """The run cannot make progress. The message gives the cause."""


class WorkerDiedError(RunStoppedError):
    """A process of the run or its engine died. The message names it and gives the cause."""


class WeightUpdateTimeoutError(RunStoppedError):
    """The rollout servers did not acknowledge the actor's weights within the time limit."""


class GenerationTimeoutError(RunStoppedError):
    """No rollout was finished within the time limit."""


def failure_of(actor: Any) -> str | None:
    """Return why a live actor cannot work any more; None if it can. Runs inside the actor.

    A rollout server outlives its engine, and vLLM's client then reports ``errored``. The CPU server also keeps the
    error of a weight update in ``weight_update_error``.
    """
    engine = getattr(actor, "engine", None)
    if getattr(engine, "errored", False):
        return (
            f"its engine died: {engine.dead_error} If nothing above gives the cause, something outside the run "
            "killed it, such as the system when memory runs out."
        )
    error = getattr(actor, "weight_update_error", None)
    return None if error is None else f"it could not load the actor's weights: {error}"


class Watchdog:
    """The actors of a run by role, each with one pending probe.

    A busy actor does not answer its probe, which means nothing. Ray answers for a dead actor.
    """

    def __init__(self) -> None:
        self._roles: dict[ActorHandle, str] = {}
        self._probes: dict[ray.ObjectRef, ActorHandle] = {}
        self._next_look = 0.0

    def watch(self, role: str, actors: Iterable[ActorHandle]) -> None:
        """Watch ``actors`` too, under the name ``role`` and their position."""
        for rank, actor in enumerate(actors):
            self._roles[actor] = f"{role} {rank}"
            self._probe(actor)

    def check(self) -> None:
        """Raise if an actor is known to be dead. Cheap if the last check was less than ``PROBE_SECONDS`` ago.

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
                logger.warning("%s does not answer and is no longer watched: %s", self._roles[actor], error)
                continue
            if failure is not None:
                raise WorkerDiedError(f"{self._roles[actor]} failed: {failure}")
            self._probe(actor)

    def check_for(self, seconds: float) -> None:
        """Check repeatedly for ``seconds``: a recent death is not known yet.

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
    """Run ``call()`` in a separate thread and return its result, while the run is alive.

    Args:
        call: has no limit; its thread keeps running if it does not end.
        seconds: time limit.
        watchdog: checked while waiting.

    Raises:
        WeightUpdateTimeoutError: no result after ``seconds``.
        WorkerDiedError: the watchdog found a dead actor.
        Exception: any exception of ``call``.
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
    """End a wait in which no rollout was finished for too long.

    Only time spent waiting counts, in units of the poll interval. The time of a training step between two waits does
    not.
    """

    def __init__(self, seconds: float | None, poll_interval: float) -> None:
        self._seconds = seconds
        self._poll_interval = poll_interval
        self._last: Any = None
        self._waited = 0.0

    def check(self, progress: Any) -> None:
        """Count one poll. ``progress`` changes whenever a rollout is finished.

        Raises:
            GenerationTimeoutError: ``progress`` has been the same for longer than the limit.
        """
        self._waited = self._waited + self._poll_interval if progress == self._last else 0.0
        self._last = progress
        if self._seconds is not None and self._waited > self._seconds:
            raise GenerationTimeoutError(
                f"no rollout was finished within {self._seconds:g} s, with {progress}. See the last output of the "
                "rollout servers, agent workers and reward workers in the log. If single rollouts do take that long, "
                "raise entropy.watchdog.rollout_timeout_s."
            )


def rollout_counts(buffer: ReplayBuffer, partition_id: str, *_: Any, **__: Any) -> str:
    """Count the prompts of a partition by state, and its finished trajectories, in words.

    It is called with all arguments of the buffer's own wait, which include the partition.
    """
    states = ("pending", "running", "finished", "failure")
    prompts = ", ".join(f"{len(getattr(buffer, f'{state}_keys')[partition_id])} {state}" for state in states)
    return f"{prompts} prompts and {len(buffer.partitions[partition_id])} trajectories"


def last_checkpoint(config: DictConfig) -> str:
    """Describe where a stopped run can be resumed from."""
    folder = latest_checkpoint(config)
    if folder is None:
        return "No checkpoint was written (trainer.save_freq)."
    # veRL deletes an older actor when the next one is written, but marks the next checkpoint complete only later.
    if not (folder / "actor").exists():
        return (
            f"The last complete checkpoint, {folder}, has no actor: veRL deleted it for the next checkpoint, which is "
            "not complete. Raise trainer.max_actor_ckpt_to_keep."
        )
    return f"The last good checkpoint is {folder}."


def storage_units() -> list[ActorHandle]:
    """List TransferQueue's storage units that this process has started. They have no public name.

    If one of them or the controller dies, every reader and writer retries for ten minutes.
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
    """Wrap ``poll``, the wait of a replay buffer, in checks of the processes and of the progress.

    Args:
        counts: describes the buffer's contents, from the arguments of ``poll``. It is not called again once it has
            raised.
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
    """The watchdog for any of veRL's v1 trainers. In a class statement, it precedes the trainer.

    It also applies ``trainer.v1.sampler.sampler_kwargs.poll_interval`` (seconds). veRL's buffers have this parameter,
    by default 2.0, but the trainer does not set it.
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
