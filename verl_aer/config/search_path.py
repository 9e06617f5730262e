"""Make the methods and parts available to Hydra: ``+entropy=aer``, without ``hydra.searchpath``.

Hydra calls ``EntropyPresets`` each time before it composes a config. The methods, and with them torch, are imported
only then: a dozen processes of a run import Hydra, but only one of them composes.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from verl_aer._import_hooks import attempt
from verl_aer.config import PROVIDER


class EntropyPresets(SearchPathPlugin):
    """Plugin that adds this folder to Hydra's search path, and the registered methods and parts to its store."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(PROVIDER, "pkg://verl_aer.config")
        attempt(store_presets)


def install() -> None:
    """Register the plugin with Hydra in this process."""
    Plugins.instance().register(EntropyPresets)


def store_presets() -> None:
    from verl_aer.config.presets import store_presets

    store_presets()
