"""A run that is asked to stop ends its step, saves, and leaves as a finished run does.

    touch <trainer.default_local_dir>/stop_requested

A scheduler that is about to take the machines away asks so; so may a user. The step in progress is finished first,
so the time between the request and the end is at most one step and one checkpoint.
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
    """Looks for a request at the end of each step; placed before any of veRL's v1 trainers.

    The request's file is removed once the run has seen to it. One that is still there after the run's end came too
    late: the run had made all its steps.
    """

    config: DictConfig
    global_steps: int
    total_training_steps: int
    _saved_step: int | None = None

    def fit(self, agent_loop_manager: Any) -> None:
        # An earlier attempt's: it says nothing of this one.
        request_path(self.config).with_name(STOPPED_FILE).unlink(missing_ok=True)
        super().fit(agent_loop_manager)

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        self._saved_step = self.global_steps

    def on_step_end(self) -> None:
        # Before veRL's own end of the step, which hands the new weights out: where veRL saves too.
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
            # veRL's loop runs as long as steps are left.
            self.total_training_steps = self.global_steps
        super().on_step_end()
