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
import hashlib
import json
import math
import os
import typing
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from verl_aer._files import write_text_atomically
from verl_aer.config.schema import EntropyConfig, measures_responses, to_mapping
from verl_aer.control.loop import ControlState
from verl_aer.errors import VerlAerError
from verl_aer.methods.base import get_method, method_names
from verl_aer.parts.base import ROLES, get_part, part_names
from verl_aer.parts.controller import Controller, as_floats
from verl_aer.rollouts.question_memory import Question, QuestionMemory

FORMAT = "verl_aer.entropy_control"
VERSION = 4

MEASURING_PARTS = ("measure", "token_selection")
"""Parts whose settings define the entropy of H0; a state with other settings is refused."""

_NO_PART_IN_A_RESUME = ("method", "on_missing_state", "watchdog")
"""Keys of the config that do not affect a resumed run."""

_SWITCH = "To restart the controller, set entropy.on_missing_state=restart."


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
        self.path = Path(path)
        self.problem = problem
        super().__init__(f"{self.path}: {problem}. {_SWITCH}")


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
        "format": FORMAT,
        "version": VERSION,
        "config": to_mapping(config),
        "state": dataclasses.asdict(state),
        "memory": {
            "questions": {name: list(question) for name, question in memory.questions.questions.items()},
            "reward_shaping": dict(memory.reward_shaping),
        },
        "conditions": dict(conditions or {}),
    }
    document["sha256"] = _digest(document)
    write_text_atomically(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def load_run(path: str | os.PathLike[str], config: EntropyConfig) -> SavedRun:
    """Load a file of ``save_state``, adapt the state to ``config`` and list the changes.

    If no setting has changed, the state is restored bit for bit.

    Raises:
        StateError: the file is missing, incomplete, of another format or of a newer version; it has unknown keys, wrong
            types, impossible values or a wrong digest; or its H0 is another entropy than ``config`` measures.
    """
    document = _read(path)
    version = VERSION
    if isinstance(document, dict) and document.get("format") == FORMAT and "version" in document:
        # Before the keys, which depend on the version.
        _require_version(path, document["version"])
        version = document["version"]
    optional = {"conditions"} if version == 2 else set()
    _require_keys(path, "the file", document, _KEYS[version], optional)
    if document["format"] != FORMAT:
        raise StateError(path, f"its format is {document['format']!r}, not {FORMAT!r}: it is some other file")
    for part in ("config", "state"):
        _require_object(path, f"its {part}", document[part])
    _require_object(path, "its config.controller", document["config"].get("controller"))
    is_whole = document["sha256"] == _digest(document)
    for older in range(version, VERSION):
        document = _MIGRATIONS[older](document)

    saved = _with_defaults(path, document["config"], to_mapping(config))
    _require_same_measure(path, saved, config)
    state = _read_state(path, document["state"], saved)
    memory = _read_memory(path, document["memory"])
    # Last, because the checks above name the problem; this check finds values changed by disk errors or an editor.
    if not is_whole:
        raise StateError(path, "its contents do not match their sha256: they were changed after it was written")
    changes = _changed_settings(document["config"], to_mapping(config))
    state, adapted = _adapted(state, saved["controller"]["kind"], config)
    return SavedRun(state, memory, changes + adapted)


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


def _digest(document: dict[str, Any]) -> str:
    parts = [document[part] for part in ("config", "state", "memory", "conditions") if part in document]
    contents = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(contents.encode()).hexdigest()


def _read(path: str | os.PathLike[str]) -> Any:
    path = Path(path)
    if not path.is_file():
        raise StateError(path, "the file does not exist, so the checkpoint holds no state of the entropy control")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StateError(path, f"it is not whole JSON, it may be truncated or damaged ({error})") from error


def _from_version_1(document: dict[str, Any]) -> dict[str, Any]:
    """Migrate version 1, which had no damping: the rule continues from alpha."""
    state = document["state"]
    return {**document, "state": {**state, "undamped_alpha": state.get("alpha")}}


def _from_version_2(document: dict[str, Any]) -> dict[str, Any]:
    """Migrate version 2, which had four parts, no memory, not always conditions, and only the sum of H0's entropies."""
    names = {"anchor_sum": "entropy_sum", "anchor_count": "entropy_count"}
    return {
        "conditions": {},
        **document,
        "config": {
            "selection": {"kind": "all"},
            "penalty": {"kind": "bonus"},
            "reward_shaping": {"kind": "none"},
            "advantage_shaping": {"kind": "none"},
            **document["config"],
        },
        "state": _renamed(document["state"], names),
        "memory": {"questions": {}, "reward_shaping": {}},
    }


def _from_version_3(document: dict[str, Any]) -> dict[str, Any]:
    """Migrate version 3, which had other names of parts and settings, and the controller's state in the control's."""
    sections = {
        "functional": "measure",
        "selection": "token_selection",
        "penalty": "regularizer",
        "memory": "question_memory",
        "limits": "watchdog",
    }
    settings = {
        "correctness": {"key": "reward_key"},
        "memory": {"rise": "ema_up", "fall": "ema_down", "capacity": "max_questions"},
        "limits": {"weight_update_seconds": "weight_sync_timeout_s", "generation_seconds": "rollout_timeout_s"},
    }
    config = {
        sections.get(section, section): _renamed(value, settings[section]) if section in settings else value
        for section, value in document["config"].items()
    }
    if config["aggregation"] == "policy":
        config["aggregation"] = "same_as_policy_loss"
    if "allocation" in config:
        allocation = _without(config["allocation"], {"power", "mean_normalize"})
        kinds = {"historical": "historical_accuracy"}
        config["allocation"] = {**allocation, "kind": kinds.get(allocation["kind"], allocation["kind"])}
    config["controller"], state = _controller_of_version_3(config["controller"], document["state"])
    return {**document, "config": config, "state": state}


def _controller_of_version_3(
    controller: dict[str, Any], state: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Migrate the controller's settings and the state; ``pi`` was three controllers, one of them with a sign rule."""
    own = {"undamped_alpha", "entropy_ema"}
    undamped_alpha, entropy_ema = state.get("undamped_alpha"), state.get("entropy_ema")
    names = {"initial": "alpha_init", "minimum": "alpha_min", "maximum": "alpha_max"}
    remembered = {}
    if controller.get("kind") == "sign_gated":
        controller = {**_renamed(controller, {**names, "delta": "step_size"}), "kind": "sign"}
        remembered = {"coefficient": undamped_alpha}
    elif controller.get("update_rule") == "sign":
        kept = _without(controller, {"update_rule", "warmup_steps", "dead_band", "ema", "damping"})
        controller = {**_renamed(kept, {**names, "eta": "step_size"}), "kind": "sign", "gate": False}
        remembered = {"coefficient": undamped_alpha}
    elif controller.get("kind") in ("integral", "proportional_integral", "dead_band"):
        kept = _without(controller, {"update_rule"})
        controller = {**_renamed(kept, {**names, "eta": "ki", "damping": "kp"}), "kind": "pi"}
        remembered = {"integral": undamped_alpha, "entropy_ema": entropy_ema}
    elif controller.get("kind") == "schedule":
        controller = _renamed(controller, names)
    return controller, {**_without(state, own), "controller": remembered, "last_entropy": entropy_ema}


def _renamed(settings: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in settings.items()}


def _without(settings: dict[str, Any], names: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _from_version_1,
    2: _from_version_2,
    3: _from_version_3,
}
"""Migrations from each version to the next."""

_KEYS = {
    1: {"format", "version", "config", "state", "sha256"},
    2: {"format", "version", "config", "state", "sha256"},
    3: {"format", "version", "config", "state", "memory", "conditions", "sha256"},
    4: {"format", "version", "config", "state", "memory", "conditions", "sha256"},
}


def _require_object(path: str | os.PathLike[str], what: str, found: Any) -> None:
    if not isinstance(found, dict):
        raise StateError(path, f"{what} holds {type(found).__name__}, not an object of keys and values")


def _require_keys(
    path: str | os.PathLike[str], what: str, found: Any, required: Set[str], optional: Set[str] = frozenset()
) -> None:
    _require_object(path, what, found)
    missing, unknown = sorted(required - set(found)), sorted(set(found) - required - optional)
    if missing:
        raise StateError(path, f"{what} lacks the keys {missing}")
    if unknown:
        raise StateError(
            path,
            f"{what} has the unknown keys {unknown}, which a newer verl_aer wrote; install that one to resume from it",
        )


def _require_version(path: str | os.PathLike[str], version: Any) -> None:
    if type(version) is not int or version < 1:
        raise StateError(path, f"its version is {version!r}, not a number from 1 on")
    if version > VERSION:
        raise StateError(
            path,
            f"its version {version} is newer than {VERSION}, the newest this verl_aer reads; install the "
            "verl_aer that wrote it to resume from it",
        )


def _with_defaults(path: str | os.PathLike[str], saved: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Return the saved config with the default of each setting that is newer than the file."""
    required = {"method", "measure", "target", "controller", "aggregation"}
    _require_keys(path, "its config", saved, required, set(current))
    filled = {}
    for section, settings in saved.items():
        if section not in ROLES and not isinstance(current[section], dict):
            filled[section] = settings
            continue
        _require_object(path, f"its config.{section}", settings)
        if section in ROLES:
            defaults, required = _defaults(section, settings, saved["method"]), {"kind"}
        else:
            defaults, required = current[section], set()
        # The settings of an unregistered kind are unknown.
        known = set(settings if defaults is None else defaults)
        _require_keys(path, f"its config.{section}", settings, required, known)
        filled[section] = {**(defaults or {}), **settings}
    return {**current, **filled}


def _defaults(part: str, settings: dict[str, Any], method: str) -> dict[str, Any] | None:
    """Return the part's defaults in the method, else those of its kind; None for an unregistered kind."""
    kind = settings.get("kind")
    if kind not in part_names(part):
        return None
    own = getattr(get_method(method), part) if method in method_names() else None
    defaults = own if own is not None and own.kind == kind else get_part(part, kind)()
    return {"kind": kind, **defaults.model_dump()}


def _part(part: str, settings: dict[str, Any]) -> Any | None:
    """Create the part with these settings; None for an unregistered kind."""
    if settings["kind"] not in part_names(part):
        return None
    return get_part(part, settings["kind"])(**{name: value for name, value in settings.items() if name != "kind"})


def _require_same_measure(path: str | os.PathLike[str], saved: dict[str, Any], config: EntropyConfig) -> None:
    current = to_mapping(config)
    differing = [part for part in MEASURING_PARTS if saved[part] != current[part]]
    if measures_responses(saved["aggregation"]) != measures_responses(config.aggregation):
        differing.append("aggregation")
    target = _part("target", saved["target"])
    if target is None or target.needs_anchor != config.target.needs_anchor:
        differing.append("target")
    if differing:
        settings = [f"entropy.{name} was {saved[name]!r} and is now {current[name]!r}" for name in differing]
        raise StateError(
            path,
            f"its H0 is that of another entropy or target: {'; '.join(settings)}. Set them back to resume from it",
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
    given = config.target.initial_entropy if config.target.needs_anchor else None
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


def _read_state(path: str | os.PathLike[str], found: Any, saved: dict[str, Any]) -> ControlState:
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(ControlState)}
    _require_keys(path, "its state", found, {name for name in fields if fields[name]}, set(fields))
    for name, hint in _number_types().items():
        if name in found:
            _require_value(path, name, found[name], *hint)
    remembered = _read_remembered(path, found["controller"], found["alpha"], saved)
    state = ControlState(**{**found, "controller": remembered})
    _require_possible(path, state, saved)
    return state


def _read_remembered(
    path: str | os.PathLike[str], found: Any, alpha: float, saved: dict[str, Any]
) -> dict[str, float | None]:
    """Read the controller's state; a number that is newer than the file starts as in a run's first step."""
    controller = _part("controller", saved["controller"])
    _require_object(path, "its state.controller", found)
    # The state of an unregistered kind is unknown.
    begun = dict.fromkeys(found) if controller is None else as_floats(controller.init(alpha))
    _require_keys(path, "its state.controller", found, set(), set(begun))
    for name, value in found.items():
        _require_value(path, f"controller.{name}", value, float, may_be_null=begun[name] is None)
    return {**begun, **found}


def _read_memory(path: str | os.PathLike[str], found: Any) -> RunMemory:
    _require_keys(path, "its memory", found, set(), {"questions", "reward_shaping"})
    for name, value in found.items():
        _require_object(path, f"its memory.{name}", value)
    questions, shaping = found.get("questions", {}), found.get("reward_shaping", {})
    for name, value in shaping.items():
        _require_value(path, f"memory.reward_shaping.{name}", value, float, may_be_null=False)
    for name, question in questions.items():
        if not (isinstance(question, list) and len(question) == len(Question._fields)):
            raise StateError(path, f"its memory of the question {name!r} is {question!r}")
        accuracy, shortest, step = question
        _require_value(path, f"memory.questions.{name}.accuracy", accuracy, float, may_be_null=False)
        _require_value(path, f"memory.questions.{name}.shortest", shortest, int, may_be_null=True)
        _require_value(path, f"memory.questions.{name}.step", step, int, may_be_null=False)
        if not 0 <= accuracy <= 1:
            raise StateError(path, f"its memory of the question {name!r} has accuracy={accuracy!r}, not in [0, 1]")
    return RunMemory(QuestionMemory({name: Question(*question) for name, question in questions.items()}), shaping)


def _number_types() -> dict[str, tuple[type, bool]]:
    """Return the type of each number of ControlState, and whether it may be null."""
    hints = {name: hint for name, hint in typing.get_type_hints(ControlState).items() if name != "controller"}
    options = {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}
    return {name: (of_name[0], type(None) in of_name) for name, of_name in options.items()}


def _require_value(path: str | os.PathLike[str], name: str, value: Any, wanted: type, may_be_null: bool) -> None:
    if value is None and may_be_null:
        return
    if type(value) is not wanted:
        raise StateError(path, f"its state has {name}={value!r}, which is not of type {wanted.__name__}")
    if not math.isfinite(value):
        raise StateError(path, f"its state has {name}={value!r}, which is not finite")


def _require_possible(path: str | os.PathLike[str], state: ControlState, saved: dict[str, Any]) -> None:
    controller = _part("controller", saved["controller"])
    for name in ("entropy_count", "step", "updates", "skipped_updates", "saturated_steps"):
        if getattr(state, name) < 0:
            raise StateError(path, f"its state has {name}={getattr(state, name)!r}, which is negative")
    # A user-defined kind that is no longer registered is not checked.
    if controller is not None:
        _require_reachable(path, state, controller)
    if state.updates + state.skipped_updates > state.step:
        raise StateError(path, "its state counts more updates than steps")
    if state.saturated_steps > state.updates:
        raise StateError(path, "its state counts more saturated steps than updates")
    if state.updates and state.last_entropy is None:
        raise StateError(path, "its state counts updates and lacks last_entropy")
    waits_for_anchor = _part("target", saved["target"]).needs_anchor and (controller is None or controller.uses_target)
    if state.updates and waits_for_anchor and state.initial_entropy is None:
        raise StateError(path, "its state counts updates towards a target and lacks initial_entropy")


def _require_reachable(path: str | os.PathLike[str], state: ControlState, controller: Controller) -> None:
    """Refuse a state that the controller, with the settings of the file, would not restore unchanged."""
    remembered, alpha = controller.restore(state.controller, state.alpha)
    found = {"alpha": state.alpha, **{f"controller.{name}": value for name, value in state.controller.items()}}
    restored = {"alpha": alpha, **{f"controller.{name}": value for name, value in remembered.items()}}
    for name, value in found.items():
        if value != restored[name]:
            raise StateError(
                path, f"its state has {name}={value!r}, which the controller {controller.kind!r} cannot have"
            )
