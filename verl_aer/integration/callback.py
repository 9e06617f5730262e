"""The Hydra callback that our presets install: what happens in the driver before and after veRL's own part."""

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
    """A config that cannot work ends the run before Ray starts; a run that failed shows its cause last."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process with every problem of the config listed, before any Ray actor exists; notes end nothing."""
        checked = check_config(config, on_driver=True)
        for note in checked.notes:
            print(f"[verl_aer] note: {note}", file=sys.stderr, flush=True)
        if checked.problems:
            print(ConfigError(checked.problems), file=sys.stderr, flush=True)
            # Hydra turns a callback's exceptions into warnings; only SystemExit ends the run.
            raise SystemExit(BAD_CONFIG_EXIT_CODE)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Leave Ray before Hydra prints the exception of a failed run.

        Until then Ray keeps printing what its actors wrote, and the cause would scroll away.
        """
        ray.shutdown()
