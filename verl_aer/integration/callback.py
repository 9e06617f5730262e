"""Check the config before a run and shut Ray down after it: the Hydra callback that our presets install."""

from __future__ import annotations

import sys
from typing import Any

import ray
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from verl_aer.config.schema import ConfigError
from verl_aer.integration.preflight import check_config

BAD_CONFIG_EXIT_CODE = 2


class RunCallback(Callback):
    """Stop a run with a bad config before Ray starts, and show the cause of a failed run last."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print every problem and note of the config, and end the process if there is a problem."""
        checked = check_config(config, on_driver=True)
        for note in checked.notes:
            print(f"[verl_aer] note: {note}", file=sys.stderr, flush=True)
        if checked.problems:
            print(ConfigError(checked.problems), file=sys.stderr, flush=True)
            # Hydra turns a callback's exceptions into warnings; only SystemExit ends the run.
            raise SystemExit(BAD_CONFIG_EXIT_CODE)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Shut Ray down before Hydra prints the exception of a failed run.

        Otherwise Ray keeps printing the output of its actors, and the exception scrolls away.
        """
        ray.shutdown()
