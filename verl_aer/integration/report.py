"""What a run says of itself: the parts of the stack that really ran, and where its metrics log lies."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import DictConfig, ListConfig
from ray.util.state import list_actors
from torch.distributed.fsdp import FSDPModule
from verl.single_controller.ray import RayWorkerGroup
from verl.workers.rollout.replica import RolloutReplica


def stack_report(actor_wg: RayWorkerGroup, replicas: list[RolloutReplica]) -> list[str]:
    """One line each for the Ray actors, the training engine and the rollout servers.

    Asked of the processes themselves, not read from the config.
    """
    engines = ray.get([worker.__ray_call__.remote(_describe_engine) for worker in actor_wg.workers])
    servers = ray.get([server.__ray_call__.remote(_describe_server) for r in replicas for server in r.servers])
    actors = Counter(
        actor.class_name.rpartition(".")[2] for actor in list_actors(filters=[("state", "!=", "DEAD")], limit=10_000)
    )
    return [
        "ray actors: " + ", ".join(f"{count} {name}" for name, count in sorted(actors.items())),
        f"training: {_one(engines)}",
        f"rollout: {len(replicas)} x {_one(servers)}",
    ]


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
