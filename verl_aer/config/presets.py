"""Register the methods and their parts with Hydra: ``+entropy=aer entropy/target=absolute``.

    entropy=NAME           a registered method: its parts and defaults, and the settings of veRL that it needs
    entropy/ROLE=NAME      a registered part with its own defaults, for each ROLE of ROLES
    hardware=cpu           the file config/hardware/cpu.yaml

A method or part must be registered before Hydra composes the config.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

from hydra.core.config_store import ConfigStore

from verl_aer.config import PROVIDER
from verl_aer.config.schema import EntropyConfig, to_mapping
from verl_aer.methods.base import Method, get_method, method_names
from verl_aer.parts.base import ROLES, get_part, part_names

VERL_SETTINGS = "_verl_aer"
"""Config group of the veRL settings that a method needs; a preset includes it, outside the ``entropy`` node."""

FORKED_PYTHON = "_forked_python"
FORKED_PYTHON_MODULE = "verl_aer.forking.python"


def store_presets() -> None:
    """Store every registered part and method in Hydra's ConfigStore."""
    store = ConfigStore.instance()
    for role in ROLES:
        for name in part_names(role):
            store.store(group=f"entropy/{role}", name=name, node=_part_node(role, name), provider=PROVIDER)
    for name in method_names():
        _store_method(store, name, get_method(name))
    store.store(
        group=VERL_SETTINGS, name=FORKED_PYTHON, package="_global_", node=_nested(forked_python()), provider=PROVIDER
    )


def forked_python() -> dict[str, Any]:
    """What `hardware=cpu` includes and a file cannot say: the command that starts Ray's workers."""
    # By the module's name: a Ray job that brings the package has it in another folder on each node.
    return {"ray_kwargs.ray_init.runtime_env.py_executable": f"{shlex.quote(sys.executable)} -m {FORKED_PYTHON_MODULE}"}


def _store_method(store: ConfigStore, name: str, method: Method) -> None:
    parts = {role: getattr(method, role) for role in ROLES}
    node = to_mapping(EntropyConfig(method=name, aggregation=method.aggregation, **parts))
    chosen = {}
    for role in ROLES:
        part = node.pop(role)
        chosen[role] = part["kind"]
        if part != _part_node(role, part["kind"]):
            # The method's values apply only to the part that it chooses, because other parts have other settings.
            # In a subgroup with the method's name, they do not appear among Hydra's options of the role.
            chosen[role] = f"{name}/{part['kind']}"
            store.store(group=f"entropy/{role}/{name}", name=part["kind"], node=part, provider=PROVIDER)
    defaults = [{f"/{VERL_SETTINGS}": name}, *({role: option} for role, option in chosen.items()), "_self_"]
    store.store(group="entropy", name=name, node={"defaults": defaults, **node}, provider=PROVIDER)
    store.store(
        group=VERL_SETTINGS, name=name, package="_global_", node=_nested(verl_settings(method)), provider=PROVIDER
    )


def verl_settings(method: Method) -> dict[str, Any]:
    """Return the settings of the method's preset outside the ``entropy`` node, by full key."""
    return {
        # The entropy term and the controller need the entropy of each token.
        "actor_rollout_ref.actor.calculate_entropy": True,
        # Otherwise veRL would add its own entropy term.
        "actor_rollout_ref.actor.entropy_coeff": 0,
        "trainer.v1.trainer_mode": "aer_sync",
        # Checks the config before Ray starts, and disconnects from Ray before a failure is printed.
        "hydra.callbacks.verl_aer._target_": "verl_aer.integration.callback.RunCallback",
        **method.verl,
    }


def _part_node(role: str, name: str) -> dict[str, Any]:
    """Return the part's defaults; a setting without a default is marked as missing."""
    fields = get_part(role, name).model_fields.items()
    return {"kind": name, **{key: "???" if field.is_required() else field.get_default() for key, field in fields}}


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert full keys to nested mappings.

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
