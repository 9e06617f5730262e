"""Where the controller's state lies in veRL's checkpoints.

``<default_local_dir>/global_step_N/aer_state.json`` is written before veRL marks the checkpoint complete, and holds
the state that step N+1 starts from.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from verl_aer.config.schema import ConfigError, EntropyConfig, Problem
from verl_aer.control.state_file import SavedRun, StateError, changed_conditions, load_run

STATE_FILE = "aer_state.json"

logger = logging.getLogger(__name__)


def state_path(config: DictConfig, global_step: int) -> Path:
    return Path(config.trainer.default_local_dir) / f"global_step_{global_step}" / STATE_FILE


def resume_folder(config: DictConfig) -> Path | None:
    """The checkpoint that veRL will resume from, None for a run from scratch; veRL itself does not keep it.

    Raises:
        ConfigError: a path is asked for and none is given.
    """
    if config.trainer.resume_mode == "disable":
        return None
    if config.trainer.resume_mode == "resume_path":
        if not config.trainer.resume_from_path:
            raise ConfigError(
                [
                    Problem(
                        "trainer.resume_from_path",
                        "trainer.resume_mode=resume_path needs the checkpoint to resume from, and there is none",
                        "Set it to a global_step_... folder, or set trainer.resume_mode=auto.",
                    )
                ]
            )
        return Path(config.trainer.resume_from_path).absolute()
    return latest_checkpoint(config)


def latest_checkpoint(config: DictConfig) -> Path | None:
    """The last checkpoint that veRL has marked complete in this run's folder."""
    latest = find_latest_ckpt_path(str(Path(config.trainer.default_local_dir).absolute()))
    return None if latest is None else Path(latest)


def data_files(config: DictConfig, key: str) -> list[str]:
    """The files of ``data.train_files`` or ``data.val_files``; ``~`` is the user's folder, remote names stay."""
    files = config.data[key]
    names = [str(file) for file in (files if isinstance(files, ListConfig) else [files])]
    return [name if "://" in name else str(Path(name).expanduser()) for name in names]


def sampling_conditions(config: DictConfig) -> dict[str, Any]:
    """What moves the entropy beside the policy itself, by config key; data files by name and size."""
    keys = [
        "actor_rollout_ref.rollout.temperature",
        "actor_rollout_ref.rollout.top_k",
        "actor_rollout_ref.rollout.top_p",
        "data.max_prompt_length",
        "data.max_response_length",
    ]
    files = [Path(file) for file in data_files(config, "train_files")]
    # Not by folder, which differs between machines; a file on a remote file system has no size here.
    data = [f"{file.name} ({file.stat().st_size} bytes)" if file.exists() else file.name for file in files]
    # None for off, as in a checkpoint of before this was noted.
    bypass = "algorithm.rollout_correction.bypass_mode"
    return {
        **{key: OmegaConf.select(config, key) for key in keys},
        bypass: OmegaConf.select(config, bypass) or None,
        "data.train_files": data,
    }


def resume_warnings(config: DictConfig) -> list[str]:
    """One sentence for each condition that has changed since the checkpoint that the run resumes from."""
    folder = resume_folder(config)
    if folder is None or not (folder / STATE_FILE).exists():
        return []
    return [
        f"{change}: the entropy may move with it, and H0 stays what it was"
        for change in changed_conditions(folder / STATE_FILE, sampling_conditions(config))
    ]


def read_resumed_state(config: DictConfig, entropy: EntropyConfig) -> SavedRun | None:
    """The state to resume from, what the run remembers beside it, and what has changed; None for a run from scratch.

    With ``entropy.on_missing_state=restart`` a state that cannot be used is reported and the controller starts
    without a state (None too); otherwise StateError says which file is wrong, how, and names that switch.
    """
    folder = resume_folder(config)
    if folder is None:
        return None
    try:
        return load_run(folder / STATE_FILE, entropy)
    except StateError as error:
        if entropy.on_missing_state != "restart":
            raise
        logger.warning("entropy.on_missing_state=restart: the controller starts without a state. %s", error)
        return None
