"""State file of the entropy control, saved with veRL's checkpoint: versioned, exact and written atomically.

    {"format": "verl_aer.entropy_control", "version": 4, "config": {...}, "state": {...}, "memory": {...},
     "conditions": {...}, "sha256": "..."}

Floats are read back bit for bit. Between save and load, the meaning of H0 must not change: the measured entropy
(measure, token selection, mean over tokens or responses), and whether the target is relative to H0. All other settings
may change. ``load_run`` reports each change and adapts the state:

    H0           is kept, unless entropy.target.initial_entropy is given, which replaces it
    alpha        becomes the nearest value that the controller's settings allow
    controller   its state is kept within its settings; a controller of another kind starts from alpha
    the rest     the counters, the last entropy and the run's memory are kept

Conditions (temperature, lengths, data) may change too; ``changed_conditions`` reports them.

Files of older versions are migrated step by step. Newer versions and unknown keys, which a newer package wrote, are
refused. A setting that is missing in the file is newer than the file and gets its default.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from verl_aer._files import write_text_atomically
from verl_aer.config.schema import EntropyConfig, measures_responses, to_mapping
from verl_aer.control.loop import ControlState
from verl_aer.control.state_document import (
    VERSION,
    UnusableState,
    digest,
    naming_the_key,
    newest,
    parse,
    require_whole,
    unknown_key,
)
from verl_aer.errors import VerlAerError
from verl_aer.methods.base import get_method, method_names
from verl_aer.parts.base import ROLES, Part, get_part, part_names
from verl_aer.parts.controller import Controller, as_floats
from verl_aer.parts.target import Anchored
from verl_aer.rollouts.question_memory import QuestionMemory

MEASURING_PARTS = ("measure", "token_selection")
"""Parts whose settings define the entropy of H0; a state with other settings is refused."""

_NO_PART_IN_A_RESUME = ("method", "on_missing_state", "watchdog")
"""Keys of the config that do not affect a resumed run."""


@dataclass(frozen=True)
class RunMemory:
    """Memory of a run in addition to the control's state: its questions, and the state of its reward shaping."""

    questions: QuestionMemory = field(default_factory=QuestionMemory)
    reward_shaping: Mapping[str, float] = field(default_factory=dict)


class SavedRun(NamedTuple):
    """Result of ``load_run``: the control's state, the run's memory, and one sentence per changed setting."""

    state: ControlState
    memory: RunMemory
    changes: list[str]


class StateError(VerlAerError, ValueError):
    """A state file that cannot be used; the message names the file, the problem and the setting for a restart."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{Path(path)}: {problem}. To restart the controller, set entropy.on_missing_state=restart.")


def save_state(
    path: str | os.PathLike[str],
    state: ControlState,
    config: EntropyConfig,
    conditions: Mapping[str, Any] | None = None,
    memory: RunMemory | None = None,
) -> None:
    """Write the state atomically: a crash leaves the previous file or no file.

    conditions: settings outside the entropy control that affect the measured entropies, by config key.
    """
    memory = memory if memory is not None else RunMemory()
    document = {
        "format": "verl_aer.entropy_control",
        "version": VERSION,
        "config": to_mapping(config),
        "state": dataclasses.asdict(state),
        "memory": {
            "questions": {name: list(question) for name, question in memory.questions.questions.items()},
            "reward_shaping": dict(memory.reward_shaping),
        },
        "conditions": dict(conditions or {}),
    }
    document["sha256"] = digest(document)
    write_text_atomically(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def load_run(path: str | os.PathLike[str], config: EntropyConfig) -> SavedRun:
    """Load a file of ``save_state``, adapt the state to ``config`` and list the changes.

    If no setting has changed, the state is restored bit for bit.

    Raises:
        StateError: the file is missing, incomplete, of another format or of a newer version; it has unknown keys, wrong
            types, impossible values or a wrong digest; or its H0 is another entropy than ``config`` measures.
    """
    document = _read(path)
    try:
        return _load(document, config)
    except UnusableState as problem:
        raise StateError(path, str(problem)) from problem


def entropy_settings_path(log: Path) -> Path:
    """Return the path of a run's `entropy` settings, next to its metrics log; a replay of the log needs them."""
    return log.with_name(log.name + ".entropy.json")


def changed_conditions(path: str | os.PathLike[str], current: Mapping[str, Any]) -> list[str]:
    """Describe each condition that differs from the file, in one sentence; ``load_run`` must accept the file."""
    saved = _read(path).get("conditions")
    if saved is None:
        # Versions 1 and 2 did not always write them, so no change is known.
        return []
    return [
        f"{key} was {saved.get(key)!r} and is now {current.get(key)!r}"
        for key in sorted(set(saved) | set(current))
        if saved.get(key) != current.get(key)
    ]


def _read(path: str | os.PathLike[str]) -> Any:
    path = Path(path)
    if not path.is_file():
        raise StateError(path, "the file does not exist, so the checkpoint holds no state of the entropy control")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StateError(path, f"it is not whole JSON, it may be truncated or damaged ({error})") from error


def _load(document: Any, config: EntropyConfig) -> SavedRun:
    document = newest(document)
    found = parse(document)
    saved = _saved_config(found.config, config)
    _require_same_measure(saved, config)
    saved_kind = found.config["controller"]["kind"]
    # A controller of a user's that is no longer registered is not judged.
    controller = saved.controller if saved.controller.kind == saved_kind else None
    state = _with_whole_controller(found.state, controller)
    _require_possible(state, saved, controller)
    # Last, because the checks above name the problem; this check finds values changed by disk errors or an editor.
    require_whole(document)
    memory = RunMemory(QuestionMemory(found.memory.questions), found.memory.reward_shaping)
    changes = _changed_settings(found.config, to_mapping(config))
    state, adapted = _adapted(state, saved_kind, config)
    return SavedRun(state, memory, changes + adapted)


def _saved_config(found: dict[str, Any], config: EntropyConfig) -> EntropyConfig:
    """Return the saved config, with the default of each setting that is newer than it.

    The part of ``config`` stands for one whose kind is not registered here.
    """
    required = {"method", "measure", "target", "controller", "aggregation"}
    values = {**{name: value for name, value in config if name not in required}, **found}
    for role in set(ROLES) & set(found):
        values[role] = _saved_part(role, found[role], found.get("method")) or getattr(config, role)
    with naming_the_key("config"):
        return EntropyConfig.model_validate(values)


def _saved_part(role: str, found: Any, method: Any) -> Part | None:
    """Return the part with these settings; those that are newer have the default of its method, else of its kind."""
    kind = found.get("kind") if isinstance(found, dict) else None
    if not isinstance(kind, str):
        raise UnusableState(f"its config.{role} is {found!r}, which names no kind")
    if kind not in part_names(role):
        if role in (*MEASURING_PARTS, "target"):
            raise UnusableState(f"its config.{role} has the kind {kind!r}, which is not registered in this run")
        return None
    own = getattr(get_method(method), role) if method in method_names() else None
    defaults = own.model_dump() if own is not None and own.kind == kind else {}
    settings = {name: value for name, value in found.items() if name != "kind"}
    with naming_the_key("config", role):
        return get_part(role, kind).model_validate({**defaults, **settings})


def _require_same_measure(saved: EntropyConfig, config: EntropyConfig) -> None:
    before, current = to_mapping(saved), to_mapping(config)
    differing = [part for part in MEASURING_PARTS if before[part] != current[part]]
    if measures_responses(saved.aggregation) != measures_responses(config.aggregation):
        differing.append("aggregation")
    if isinstance(saved.target, Anchored) != isinstance(config.target, Anchored):
        differing.append("target")
    if differing:
        settings = [f"entropy.{name} was {before[name]!r} and is now {current[name]!r}" for name in differing]
        raise UnusableState(
            f"its H0 is that of another entropy or target: {'; '.join(settings)}. Set them back to resume from it"
        )


def _changed_settings(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Describe each setting that differs from the saved config or is missing in it, in one sentence each."""
    changes = []
    for section, settings in current.items():
        if section in _NO_PART_IN_A_RESUME:
            continue
        before = saved.get(section)
        if not isinstance(settings, dict) or not isinstance(before, dict) or before.get("kind") != settings.get("kind"):
            changes += _change(section, before, settings, is_new=section not in saved)
            continue
        for name, value in settings.items():
            changes += _change(f"{section}.{name}", before.get(name), value, is_new=name not in before)
    return changes


def _change(key: str, before: Any, now: Any, is_new: bool) -> list[str]:
    if is_new:
        return [f"entropy.{key} is newer than the checkpoint and is {now!r}"]
    return [] if before == now else [f"entropy.{key} was {before!r} and is now {now!r}"]


def _adapted(state: ControlState, saved_kind: str, config: EntropyConfig) -> tuple[ControlState, list[str]]:
    """Adapt the state to ``config``; return it with one sentence per change of H0, alpha and the controller's state."""
    controller, changes = config.controller, []
    given = config.target.initial_entropy if isinstance(config.target, Anchored) else None
    initial_entropy = state.initial_entropy if given is None else given
    if initial_entropy != state.initial_entropy:
        changes.append(f"H0 was {state.initial_entropy!r} and is now {given!r}, as entropy.target.initial_entropy says")
    remembered = state.controller
    if saved_kind != controller.kind:
        remembered = as_floats(controller.init(state.alpha))
        if remembered:
            changes.append(
                f"what the controller {saved_kind!r} remembered is lost: {controller.kind!r} starts from alpha"
            )
    remembered, alpha = controller.restore(remembered, state.alpha)
    if alpha != state.alpha:
        changes.append(
            f"alpha was {state.alpha!r} and is now {alpha!r}, the nearest that the controller "
            f"{controller.kind!r} allows"
        )
    adapted = dataclasses.replace(state, alpha=alpha, controller=remembered, initial_entropy=initial_entropy)
    return adapted, changes


def _with_whole_controller(state: ControlState, controller: Controller | None) -> ControlState:
    """Read the controller's state; a number that is newer than the file starts as in a run's first step."""
    if controller is None:
        return state
    begun = as_floats(controller.init(state.alpha))
    for name, value in state.controller.items():
        if name not in begun:
            raise UnusableState(unknown_key(f"state.controller.{name}"))
        if value is None and begun[name] is not None:
            raise UnusableState(f"its state.controller.{name} is None (Input should be a valid number)")
    return dataclasses.replace(state, controller={**begun, **state.controller})


def _require_possible(state: ControlState, saved: EntropyConfig, controller: Controller | None) -> None:
    if controller is not None:
        _require_reachable(state, controller)
    if state.updates + state.skipped_updates > state.step:
        raise UnusableState("its state counts more updates than steps")
    if state.saturated_steps > state.updates:
        raise UnusableState("its state counts more saturated steps than updates")
    if state.updates and state.last_entropy is None:
        raise UnusableState("its state counts updates and lacks last_entropy")
    waits_for_anchor = isinstance(saved.target, Anchored) and (controller is None or controller.uses_target)
    if state.updates and waits_for_anchor and state.initial_entropy is None:
        raise UnusableState("its state counts updates towards a target and lacks initial_entropy")


def _require_reachable(state: ControlState, controller: Controller) -> None:
    """Refuse a state that the controller, with the settings of the file, would not restore unchanged."""
    remembered, alpha = controller.restore(state.controller, state.alpha)
    values = [("alpha", state.alpha, alpha)]
    values += [(f"controller.{name}", value, remembered[name]) for name, value in state.controller.items()]
    for name, value, restored in values:
        if value != restored:
            raise UnusableState(f"its state has {name}={value!r}, which the controller {controller.kind!r} cannot have")
