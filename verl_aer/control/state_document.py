"""The document in a state file: its keys, its digest and the migrations of older versions."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Generator, Mapping, Set
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field, ValidationError

from verl_aer._settings import Settings
from verl_aer.control.loop import ControlState
from verl_aer.errors import VerlAerError
from verl_aer.rollouts.question_memory import Question

VERSION = 4


class UnusableState(VerlAerError, ValueError):
    """A problem of the file; the message follows the file name."""


class _Header(Settings, extra="ignore"):
    """The keys of every version."""

    format: Literal["verl_aer.entropy_control"]
    version: int = Field(ge=1)


class _Version1(_Header, extra="forbid"):
    config: dict[str, Any]
    state: dict[str, Any]
    sha256: str


class _Version2(_Version1):
    conditions: dict[str, Any] = Field(default_factory=dict)


class _Version3(_Version1):
    memory: dict[str, Any]
    conditions: dict[str, Any]


class _Memory(Settings):
    questions: dict[str, Question] = Field(default_factory=dict)
    reward_shaping: dict[str, float] = Field(default_factory=dict)


class Document(_Header, extra="forbid"):
    """The newest version. ``state_file`` validates its config, which depends on the registered parts."""

    config: dict[str, Any]
    state: ControlState
    memory: _Memory
    conditions: dict[str, Any]
    sha256: str


def newest(document: Any) -> dict[str, Any]:
    """Migrate a document of any version to the newest.

    Raises:
        UnusableState: the version is newer than this package, or an older document is damaged.
    """
    with naming_the_key():
        # Read the version before the other keys, which depend on it.
        version = _Header.model_validate_json(json.dumps(document)).version
    if version > VERSION:
        raise UnusableState(
            f"its version {version} is newer than {VERSION}, the newest this verl_aer reads; install the "
            "verl_aer that wrote it to resume from it"
        )
    if version == VERSION:
        return document
    keys, _ = _OLDER[version]
    with naming_the_key():
        keys.model_validate_json(json.dumps(document))
    # A migration relies on undamaged contents.
    require_whole(document)
    for older in range(version, VERSION):
        _, migrate = _OLDER[older]
        document = migrate(document)
    return {**document, "version": VERSION, "sha256": digest(document)}


def parse(document: dict[str, Any]) -> Document:
    """Check the keys and values of a document of the newest version."""
    with naming_the_key():
        return Document.model_validate_json(json.dumps(document))


def digest(document: dict[str, Any]) -> str:
    """Return the sha256 of the contents."""
    parts = [document[part] for part in ("config", "state", "memory", "conditions") if part in document]
    contents = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(contents.encode()).hexdigest()


def require_whole(document: dict[str, Any]) -> None:
    """Refuse a document that was changed after it was written."""
    if document["sha256"] != digest(document):
        raise UnusableState("its contents do not match their sha256: they were changed after it was written")


@contextmanager
def naming_the_key(*section: str) -> Generator[None]:
    """Convert pydantic's first error in a section of the file to UnusableState, which names the key."""
    try:
        yield
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join([*section, *map(str, detail["loc"])])
        if detail["type"] == "missing":
            raise UnusableState(f"it lacks the key {key}") from None
        if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            raise UnusableState(unknown_key(key)) from None
        what = f"its {key}" if key else "the file"
        raise UnusableState(f"{what} is {reprlib.repr(detail['input'])} ({detail['msg']})") from None


def unknown_key(key: str) -> str:
    """Write the message for an unknown key."""
    return f"it has the unknown key {key}, which a newer verl_aer wrote; install that one to resume from it"


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


_OLDER: dict[int, tuple[type[_Header], Callable[[dict[str, Any]], dict[str, Any]]]] = {
    1: (_Version1, _from_version_1),
    2: (_Version2, _from_version_2),
    3: (_Version3, _from_version_3),
}
"""Per older version: its keys, and the migration to the next version."""
