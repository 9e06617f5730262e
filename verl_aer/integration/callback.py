"""The Hydra callback that our presets install: checks the composed config before veRL starts Ray."""

from __future__ import annotations

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from verl_aer.config.schema import ConfigError
from verl_aer.integration.preflight import preflight

BAD_CONFIG_EXIT_CODE = 2


class PreflightCallback(Callback):
    """Ends the process with every problem of the config listed, in the driver, before any Ray actor exists."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        problems = preflight(config)
        if problems:
            print(ConfigError(problems), file=sys.stderr, flush=True)
            # Hydra turns a callback's exceptions into warnings; only SystemExit ends the run.
            raise SystemExit(BAD_CONFIG_EXIT_CODE)
