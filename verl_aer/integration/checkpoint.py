"""Locate and read the controller's state in veRL's checkpoints.

The state is ``<default_local_dir>/global_step_N/aer_state.json``. It is written before veRL marks the checkpoint
complete, and step N+1 starts from it.
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
    """Find the checkpoint that veRL will resume from; None for a run from scratch. veRL does not record the path.

    Raises:
        ConfigError: ``resume_mode=resume_path`` without a path.
    """
    if config.trainer.resume_mode == "disable":
        return None
    if config.trainer.resume_mode == "resume_path":
        if not config.trainer.resume_from_path:
            raise ConfigError(
                [
                    Problem(
                        "trainer.resume_from_path",
                        "trainer.resume_mode=resume_path needs a checkpoint, and trainer.resume_from_path is not set",
                        "Set it to a global_step_... folder, or set trainer.resume_mode=auto.",
                    )
                ]
            )
        return Path(config.trainer.resume_from_path).absolute()
    return latest_checkpoint(config)


def latest_checkpoint(config: DictConfig) -> Path | None:
    """Find the last checkpoint that veRL has marked complete in this run's folder."""
    latest = find_latest_ckpt_path(str(Path(config.trainer.default_local_dir).absolute()))
    return None if latest is None else Path(latest)


def data_files(config: DictConfig, key: str) -> list[str]:
    """List the files of ``data.train_files`` or ``data.val_files``. ``~`` is expanded, remote names are kept."""
    files = config.data[key]
    names = [str(file) for file in (files if isinstance(files, ListConfig) else [files])]
    return [name if "://" in name else str(Path(name).expanduser()) for name in names]


def sampling_conditions(config: DictConfig) -> dict[str, Any]:
    """Collect the settings besides the policy that change the entropy, by config key; data files by name and size."""
    keys = [
        "actor_rollout_ref.rollout.temperature",
        "actor_rollout_ref.rollout.top_k",
        "actor_rollout_ref.rollout.top_p",
        "data.max_prompt_length",
        "data.max_response_length",
    ]
    files = [Path(file) for file in data_files(config, "train_files")]
    # Folders differ between machines, so only the name counts. A file on a remote file system has no size here.
    data = [f"{file.name} ({file.stat().st_size} bytes)" if file.exists() else file.name for file in files]
    # None for off, as in a checkpoint that does not record the setting.
    bypass = "algorithm.rollout_correction.bypass_mode"
    return {
        **{key: OmegaConf.select(config, key) for key in keys},
        bypass: OmegaConf.select(config, bypass) or None,
        "data.train_files": data,
    }


def resume_warnings(config: DictConfig) -> list[str]:
    """Write one sentence for each condition that has changed since the checkpoint that the run resumes from."""
    folder = resume_folder(config)
    if folder is None or not (folder / STATE_FILE).exists():
        return []
    return [
        f"{change}: the entropy may change with it, and H0 stays the same"
        for change in changed_conditions(folder / STATE_FILE, sampling_conditions(config))
    ]


def read_resumed_state(config: DictConfig, entropy: EntropyConfig) -> SavedRun | None:
    """Read the state to resume from, the question memory and the changed settings; None for a run from scratch.

    With ``entropy.on_missing_state=restart`` an unusable state is a warning, and the controller starts without a state
    (None too). Otherwise it raises StateError, which names the file, the defect and that switch.
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
