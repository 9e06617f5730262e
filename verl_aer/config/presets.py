"""Registers the methods and their parts with Hydra: ``+entropy=aer entropy/target=absolute``.

    entropy=NAME           a registered method: its parts and defaults, and the settings of veRL that it needs
    entropy/KIND=NAME      a registered part with its own defaults, for each KIND of PART_KINDS
    hardware=cpu           the file config/hardware/cpu.yaml

Hydra calls ``EntropyPresets`` each time before it composes. Only then are the methods loaded: a dozen processes of a
run import Hydra, and one of them composes. A method or part is known if it has been registered by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from verl_aer._import_hooks import attempt
from verl_aer.methods.registry import PART_KINDS, Method, get_method, get_part, method_names, part_names

PROVIDER = "verl_aer"
VERL_SETTINGS = "_verl_aer"
"""The group of what a method needs of veRL. A preset includes it; it lies outside the node ``entropy``."""


class EntropyPresets(SearchPathPlugin):
    """Adds the folder of this module to Hydra's search path, and the registered methods and parts to its store."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(PROVIDER, "pkg://verl_aer.config")
        attempt(store_presets)


def install() -> None:
    """Let Hydra ask for the presets in this process."""
    Plugins.instance().register(EntropyPresets)


def store_presets() -> None:
    """Store every registered part and method in Hydra's ConfigStore."""
    store = ConfigStore.instance()
    for kind in PART_KINDS:
        for name in part_names(kind):
            store.store(group=f"entropy/{kind}", name=name, node=_part_node(kind, name), provider=PROVIDER)
    for name in method_names():
        _store_method(store, name, get_method(name))


def _store_method(store: ConfigStore, name: str, method: Method) -> None:
    # Loaded here, see above: torch and numpy come with it.
    from verl_aer.config.schema import EntropyConfig, to_mapping

    parts = {kind: getattr(method, kind) for kind in PART_KINDS}
    node = to_mapping(EntropyConfig(method=name, aggregation=method.aggregation, **parts))
    chosen = {}
    for kind in PART_KINDS:
        part = node.pop(kind)
        chosen[kind] = part["kind"]
        if part != _part_node(kind, part["kind"]):
            # The method's own values must go with its choice of the part: another part has other settings. Below a
            # folder of the method's name they are no option that Hydra lists.
            chosen[kind] = f"{name}/{part['kind']}"
            store.store(group=f"entropy/{kind}/{name}", name=part["kind"], node=part, provider=PROVIDER)
    defaults = [{f"/{VERL_SETTINGS}": name}, *({kind: option} for kind, option in chosen.items()), "_self_"]
    store.store(group="entropy", name=name, node={"defaults": defaults, **node}, provider=PROVIDER)
    store.store(
        group=VERL_SETTINGS, name=name, package="_global_", node=_nested(verl_settings(method)), provider=PROVIDER
    )


def verl_settings(method: Method) -> dict[str, Any]:
    """What the preset of ``method`` sets outside the node ``entropy``, by full key."""
    return {
        # The entropy term and the controller need the entropy of each token.
        "actor_rollout_ref.actor.calculate_entropy": True,
        # veRL's own entropy term would be added to this one.
        "actor_rollout_ref.actor.entropy_coeff": 0,
        "trainer.v1.trainer_mode": "aer_sync",
        # Checks the config before Ray starts, and leaves Ray before a failure is printed.
        "hydra.callbacks.verl_aer._target_": "verl_aer.integration.callback.RunCallback",
        **method.verl,
    }


def _part_node(kind: str, name: str) -> dict[str, Any]:
    """The part's own defaults; a setting without one has to be given."""
    return {"kind": name, **dict(_defaults(get_part(kind, name)))}


def _defaults(part: type) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(part):
        if field.default_factory is not dataclasses.MISSING:
            yield field.name, field.default_factory()
        else:
            yield field.name, "???" if field.default is dataclasses.MISSING else field.default


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Full keys as nested mappings.

    >>> _nested({"a.b": 1, "a.c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return tree
