"""Where the controller's state lies in veRL's checkpoints.

``<default_local_dir>/global_step_N/aer_state.json`` is written before veRL marks the checkpoint complete, and holds
the state that step N+1 starts from.
"""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from verl_aer.config.schema import EntropyConfig
from verl_aer.control import ControlState
from verl_aer.state import StateError, load_state

STATE_FILE = "aer_state.json"

logger = logging.getLogger(__name__)


def state_path(config: DictConfig, global_step: int) -> Path:
    return Path(config.trainer.default_local_dir) / f"global_step_{global_step}" / STATE_FILE


def resume_folder(config: DictConfig) -> Path | None:
    """The checkpoint that veRL will resume from, None for a run from scratch; veRL itself does not keep it."""
    if config.trainer.resume_mode == "disable":
        return None
    if config.trainer.resume_mode == "resume_path":
        return Path(config.trainer.resume_from_path).absolute()
    latest = find_latest_ckpt_path(str(Path(config.trainer.default_local_dir).absolute()))
    return None if latest is None else Path(latest)


def read_resumed_state(config: DictConfig, entropy: EntropyConfig) -> ControlState | None:
    """The state to go on from; None for a run from scratch.

    With ``entropy.on_missing_state=restart`` a state that cannot be used is reported and the controller starts
    afresh (None too); otherwise StateError says which file is wrong, how, and names that switch.
    """
    folder = resume_folder(config)
    if folder is None:
        return None
    try:
        return load_state(folder / STATE_FILE, entropy)
    except StateError as error:
        if entropy.on_missing_state != "restart":
            raise
        logger.warning("entropy.on_missing_state=restart: the controller starts afresh. %s", error)
        return None
