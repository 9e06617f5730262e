"""Stop a run on request: finish the step, save a checkpoint, and end like a finished run.

    touch <trainer.default_local_dir>/stop_requested

A scheduler requests this before it takes the machines away, and a user may too. The time between request and end is at
most one step and one checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from verl_aer._files import write_text_atomically

REQUEST_FILE, STOPPED_FILE = "stop_requested", "stopped_on_request"


def request_path(config: DictConfig) -> Path:
    return Path(config.trainer.default_local_dir) / REQUEST_FILE


class StopOnRequestMixin:
    """Look for a stop request at the end of each step. In a class statement, it precedes veRL's trainer.

    The run deletes the request file when it acts on it. A file that is left after the run came too late: the run had
    finished all its steps.
    """

    config: DictConfig
    global_steps: int
    total_training_steps: int
    _saved_step: int | None = None

    def fit(self, agent_loop_manager: Any) -> None:
        # The file of an earlier attempt says nothing about this one.
        request_path(self.config).with_name(STOPPED_FILE).unlink(missing_ok=True)
        super().fit(agent_loop_manager)

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        self._saved_step = self.global_steps

    def on_step_end(self) -> None:
        # Before veRL's own end of the step, which distributes the new weights: veRL saves at this point too.
        request = request_path(self.config)
        if request.exists() and self.global_steps < self.total_training_steps:
            if self._saved_step != self.global_steps:
                self._save_checkpoint()
            write_text_atomically(request.with_name(STOPPED_FILE), f"{self.global_steps}\n")
            request.unlink()
            print(
                f"[verl_aer] stopped on request after step {self.global_steps} of {self.total_training_steps}; "
                f"the checkpoint is in {self.config.trainer.default_local_dir}",
                flush=True,
            )
            # veRL's loop ends when no steps are left.
            self.total_training_steps = self.global_steps
        super().on_step_end()
