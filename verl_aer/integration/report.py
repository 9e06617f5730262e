"""What a run says of itself: the parts of the stack that really ran, and where its metrics log lies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from omegaconf import DictConfig, ListConfig
from ray.actor import ActorHandle
from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    # Only for names: the functions below are sent to actors of every kind, which import this module and need none of
    # veRL's trainer for it.
    from verl.experimental.agent_loop import AgentLoopManager
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer


def stack_report(trainer: PPOTrainer, agent_loop_manager: AgentLoopManager) -> list[str]:
    """One line each for the Ray actors, the training engine and the rollout servers.

    Asked of the processes themselves, not read from the config.
    """
    workers = trainer.actor_rollout_wg.workers
    replicas = [replica for manager in trainer._rollout_server_managers() for replica in manager.get_replicas()]
    servers = [server for replica in replicas for server in replica.servers]
    others = [*agent_loop_manager.agent_loop_workers, *(trainer.get_reward_handles() or [])]
    names = Counter(_ask([*workers, *servers, *others], _name))
    return [
        "ray actors: " + ", ".join(f"{count} {name}" for name, count in sorted(names.items())),
        f"training: {_one(_ask(workers, _describe_engine))}",
        f"rollout: {len(replicas)} replica(s) of {_one(_ask(servers, _describe_server))}",
    ]


def _ask(actors: Sequence[ActorHandle], question: Callable[[Any], str]) -> list[str]:
    """Each actor's answer, given inside its own process."""
    return ray.get([actor.__ray_call__.remote(question) for actor in actors])


def _name(actor: Any) -> str:
    return type(actor).__name__


def _one(descriptions: list[str]) -> str:
    """The description that all processes share, or all of them where they differ."""
    return " / ".join(sorted(set(descriptions)))


def _describe_engine(worker: Any) -> str:
    module = _actor_of(worker).engine.module
    strategy = "FSDP2" if isinstance(module, FSDPModule) else type(module).__name__
    world_size, backend = torch.distributed.get_world_size(), torch.distributed.get_backend()
    return f"{strategy}, world size {world_size}, {backend}, torch {torch.__version__}"


def _actor_of(worker: Any) -> Any:
    """veRL's training worker inside a Ray actor that may hold several roles."""
    for role in getattr(worker, "worker_dict", {"": worker}).values():
        if getattr(role, "actor", None) is not None:
            return role.actor
    raise LookupError("this Ray actor holds no actor role")


def _describe_server(server: Any) -> str:
    import vllm

    return f"{type(server).__name__}, vLLM {vllm.__version__}"


def metrics_log_path(config: DictConfig) -> Path | None:
    """Where veRL's ``file`` logger writes, None if the run has none; the rule is that of ``verl.utils.tracking``."""
    backends = config.trainer.logger
    if "file" not in (backends if isinstance(backends, (list, ListConfig)) else [backends]):
        return None
    if path := os.environ.get("VERL_FILE_LOGGER_PATH"):
        return Path(path)
    root = Path(os.environ.get("VERL_FILE_LOGGER_ROOT", ".")).expanduser()
    return root / config.trainer.project_name / f"{config.trainer.experiment_name}.jsonl"
