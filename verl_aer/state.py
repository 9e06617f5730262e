"""The controller's state as a file beside veRL's checkpoint: versioned, exact, whole or absent.

    {"format": "verl_aer.entropy_control", "version": 3, "config": {...}, "state": {...}, "memory": {...},
     "conditions": {...}, "sha256": "..."}

Floats are written so that they read back bit for bit. The state belongs to the settings it was made with: H0
and the smoothed entropy mean nothing for another functional, alpha nothing for another controller.
Allocation, aggregation and correctness may change between a save and a load. So may the conditions (temperature,
lengths, data): they move the entropy while H0 stays, which is the user's to want or not, so ``load_state`` accepts
them and ``changed_conditions`` names them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_aer.config.schema import EntropyConfig, to_mapping
from verl_aer.control import ControlState
from verl_aer.files import write_text_atomically
from verl_aer.questions import Question, QuestionMemory

FORMAT = "verl_aer.entropy_control"
VERSION = 3

BOUND_PARTS = ("functional", "selection", "target", "controller")
"""Parts whose settings give the state its meaning; a state is refused for others."""

_SWITCH = "To start the controller afresh, set entropy.on_missing_state=restart."


@dataclass(frozen=True)
class RunMemory:
    """What a run remembers beside the control: of its questions, and what its reward shaping asked to keep."""

    questions: QuestionMemory = field(default_factory=QuestionMemory)
    reward_shaping: Mapping[str, float] = field(default_factory=dict)


class StateError(ValueError):
    """A state file that cannot be used: the message names the file, the problem and the switch to go on."""

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
    """Write the state whole: a crash leaves the previous file or none, never half of one.

    conditions: settings outside the entropy control under which these entropies were measured, by config key.
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


def load_state(path: str | os.PathLike[str], config: EntropyConfig) -> ControlState:
    """The control's state that ``save_state`` wrote, bit for bit.

    Raises:
        StateError: the file is missing, is not whole, is of another format or version, has other keys or types,
            holds impossible or changed values, or belongs to other settings of functional, selection, target or
            controller.
    """
    return load_run(path, config)[0]


def load_run(path: str | os.PathLike[str], config: EntropyConfig) -> tuple[ControlState, RunMemory]:
    """Like ``load_state``, with what the run remembers beside the control."""
    document = _read(path)
    if isinstance(document, dict) and document.get("format") == FORMAT and "version" in document:
        # Before the keys: another version has others.
        _require_version(path, document["version"])
    keys = {"format", "version", "config", "state", "memory", "conditions", "sha256"}
    _require_keys(path, "the file", document, keys)
    if document["format"] != FORMAT:
        raise StateError(path, f"its format is {document['format']!r}, not {FORMAT!r}: it is some other file")
    _require_same_settings(path, document["config"], to_mapping(config))
    state = _read_state(path, document["state"], config)
    memory = _read_memory(path, document["memory"])
    # Last: what can be named is named above; this finds the digit that a damaged disk or an editor changed.
    if document["sha256"] != _digest(document):
        raise StateError(path, "its contents do not match their sha256: they were changed after it was written")
    return state, memory


def changed_conditions(path: str | os.PathLike[str], current: Mapping[str, Any]) -> list[str]:
    """A sentence for each condition that differs from those of the file, a state that ``load_state`` accepts."""
    saved = _read(path)["conditions"]
    return [
        f"{key} was {saved.get(key)!r} and is now {current.get(key)!r}"
        for key in sorted(set(saved) | set(current))
        if saved.get(key) != current.get(key)
    ]


def _digest(document: dict[str, Any]) -> str:
    contents = json.dumps([document[part] for part in ("config", "state", "memory", "conditions")], sort_keys=True)
    return hashlib.sha256(contents.encode()).hexdigest()


def _read(path: str | os.PathLike[str]) -> Any:
    path = Path(path)
    if not path.is_file():
        raise StateError(path, "the file does not exist, so the checkpoint holds no state of the entropy control")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StateError(path, f"it is not whole JSON, it may be truncated or damaged ({error})") from error


def _require_keys(path: str | os.PathLike[str], what: str, found: Any, expected: set[str]) -> None:
    if not isinstance(found, dict):
        raise StateError(path, f"{what} holds {type(found).__name__}, not an object of keys and values")
    if set(found) != expected:
        missing, unknown = sorted(expected - set(found)), sorted(set(found) - expected)
        raise StateError(path, f"{what} lacks the keys {missing} and has the unknown keys {unknown}")


def _require_version(path: str | os.PathLike[str], version: Any) -> None:
    if type(version) is not int or version < 1:
        raise StateError(path, f"its version is {version!r}, not a number from 1 on")
    if version > VERSION:
        raise StateError(
            path,
            f"its version {version} is newer than {VERSION}, the newest this verl_aer reads; install the "
            "verl_aer that wrote it to go on from it",
        )
    if version < VERSION:
        raise StateError(
            path,
            f"its version {version} is older than {VERSION}, which this verl_aer reads; go on from it with the "
            "verl_aer that wrote it, or restart with entropy.controller.initial and entropy.target.initial_entropy set "
            "to the values in the file",
        )


def _require_same_settings(path: str | os.PathLike[str], saved: Any, current: dict[str, Any]) -> None:
    if not isinstance(saved, dict):
        raise StateError(path, f"its config holds {type(saved).__name__}, not an object of keys and values")
    differences = [
        f"entropy.{part} was {saved.get(part)} and is now {current[part]}"
        for part in BOUND_PARTS
        if saved.get(part) != current[part]
    ]
    if differences:
        raise StateError(
            path,
            f"it was written under other settings: {'; '.join(differences)}. Set them back to go on from it; "
            "to keep alpha and H0 under new settings, restart with entropy.controller.initial and "
            "entropy.target.initial_entropy set to the values in the file",
        )


def _read_state(path: str | os.PathLike[str], found: Any, config: EntropyConfig) -> ControlState:
    fields = {field.name: hint for field, hint in _state_fields()}
    _require_keys(path, "its state", found, set(fields))
    for name, optional_number in fields.items():
        _require_value(path, name, found[name], *optional_number)
    state = ControlState(**found)
    _require_possible(path, state, config)
    return state


def _read_memory(path: str | os.PathLike[str], found: Any) -> RunMemory:
    _require_keys(path, "its memory", found, {"questions", "reward_shaping"})
    for name, value in found.items():
        if not isinstance(value, dict):
            raise StateError(path, f"its memory.{name} holds {type(value).__name__}, not an object of keys and values")
    questions, shaping = found["questions"], found["reward_shaping"]
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


def _state_fields() -> list[tuple[dataclasses.Field, tuple[type, bool]]]:
    """Each field of ControlState with its number type and whether it may be null."""
    hints = typing.get_type_hints(ControlState)
    result = []
    for of_state in dataclasses.fields(ControlState):
        options = typing.get_args(hints[of_state.name]) or (hints[of_state.name],)
        result.append((of_state, (options[0], type(None) in options)))
    return result


def _require_value(path: str | os.PathLike[str], name: str, value: Any, wanted: type, may_be_null: bool) -> None:
    if value is None and may_be_null:
        return
    if type(value) is not wanted:
        raise StateError(path, f"its state has {name}={value!r}, which is not of type {wanted.__name__}")
    if not math.isfinite(value):
        raise StateError(path, f"its state has {name}={value!r}, which is not finite")


def _require_possible(path: str | os.PathLike[str], state: ControlState, config: EntropyConfig) -> None:
    for name in ("entropy_count", "step", "updates", "skipped_updates", "saturated_steps"):
        if getattr(state, name) < 0:
            raise StateError(path, f"its state has {name}={getattr(state, name)!r}, which is negative")
    for name in ("alpha", "undamped_alpha"):
        if not config.controller.allows(getattr(state, name)):
            kind, value = config.controller.kind, getattr(state, name)
            raise StateError(path, f"its state has {name}={value!r}, which the controller {kind!r} cannot have")
    if state.updates + state.skipped_updates > state.step:
        raise StateError(path, "its state counts more updates than steps")
    if state.saturated_steps > state.updates:
        raise StateError(path, "its state counts more saturated steps than updates")
    if state.updates and state.entropy_ema is None:
        raise StateError(path, "its state counts updates and lacks entropy_ema")
    if state.updates and config.target.needs_anchor and state.initial_entropy is None:
        raise StateError(path, "its state counts updates towards a target and lacks initial_entropy")
