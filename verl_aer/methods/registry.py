"""Names for the parts of an entropy-control method, and for the methods composed of them.

A *part* answers one question and is a plain dataclass whose fields are its settings:

    allocation         which trajectory gets how much exploration?     weights(groups) -> (P,), >= 0
    functional         what entropy of a token's distribution?         entropy(logits (T, V)) -> (T,) nats
    pushed             and which one does the loss push?               a functional, or ``same``
    selection          which tokens of a response count?               weights(entropy, mask) -> (N, T), >= 0
    target             which level is wanted?                          bounds(initial_entropy, history) -> nats or None
    controller         how does the global coefficient alpha move?     next_alpha(alpha, entropy, target, step)
    penalty            how does a token's entropy enter the loss?      value(entropy, signal) -> (N, T)
    reward_shaping     what is added to a rollout's reward?            change(rollouts) -> (N,)
    advantage_shaping  what becomes of a token's advantage?            shape(tokens, ...) -> (N, T)

A *method* names its parts with its own defaults, and its source; most need none of those that NEUTRAL lists. Adding a
part is one decorator:

>>> import numpy as np
>>> from dataclasses import dataclass
>>> from verl_aer import Allocation, register_allocation, get_part
>>> @register_allocation("quadratic_example")
... @dataclass
... class Quadratic(Allocation):
...     scale: float = 1.0
...     def weights(self, groups):
...         return self.scale * (1.0 - groups.accuracy) ** 2
>>> get_part("allocation", "quadratic_example").__name__
'Quadratic'
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from verl_aer.errors import VerlAerError

QUESTIONS = {
    "allocation": "which trajectory gets how much of the global coefficient",
    "functional": "which entropy of a token's distribution is measured, for the controller",
    "pushed": "which entropy the loss pushes: the one that is measured (same), or another functional",
    "selection": "which tokens of a response count",
    "target": "which token-mean entropy is wanted",
    "controller": "how the global coefficient alpha moves",
    "penalty": "how a token's entropy enters the loss",
    "reward_shaping": "what is added to a rollout's reward",
    "advantage_shaping": "what becomes of a token's advantage",
}
"""What each kind of part decides, in the order in which a config names them."""

PART_KINDS = tuple(QUESTIONS)

NEUTRAL = {
    "pushed": "same",
    "selection": "all",
    "penalty": "bonus",
    "reward_shaping": "none",
    "advantage_shaping": "none",
}
"""What a method has of the parts that it does not name."""

STANDINGS = ("published", "our reading", "baseline", "ablation", "own")
"""How far a method's definition can be traced to its source; "own" is for those of users."""


class UnknownNameError(VerlAerError, ValueError):
    """A part or a method that is not registered; the message lists the known ones."""


class Part:
    """Base of every part: its registered name and the checks of its settings."""

    kind: ClassVar[str] = ""

    def problems(self) -> list[tuple[str, str]]:
        """Settings out of bounds, as (field, what it must be): ``("tau", "in (0, 1]")``.

        Types and finiteness are checked before. A bound on another field is named in the text.
        """
        return []


@dataclass(frozen=True)
class Method:
    """An entropy-control method: its parts with the method's defaults.

    Args:
        allocation: an instance of a registered allocation; likewise the other parts. Those of NEUTRAL may be left out.
        standing: one of STANDINGS.
        source: where the definition comes from.
        summary: one line for listings.
        aggregation: ``token-mean`` divides the entropy term by all response tokens of the global mini-batch
            whatever the policy loss does; ``seq-mean-token-mean`` averages over each response and then over
            responses; ``policy`` follows the policy loss's own mode.
        verl: settings of veRL's own that belong to the method, by full key; its preset sets them.
        watch: which metrics tell whether it works.
        differences: how this differs from the source, and why; empty where it does not.
    """

    allocation: Any
    functional: Any
    target: Any
    controller: Any
    standing: str
    source: str
    summary: str
    aggregation: str = "token-mean"
    verl: Mapping[str, Any] = field(default_factory=dict)
    watch: str = ""
    differences: str = ""
    pushed: Any = None
    selection: Any = None
    penalty: Any = None
    reward_shaping: Any = None
    advantage_shaping: Any = None

    def __post_init__(self) -> None:
        for part, neutral in NEUTRAL.items():
            if getattr(self, part) is None:
                object.__setattr__(self, part, get_part(part, neutral)())
        if self.standing not in STANDINGS:
            raise ValueError(f"standing must be one of {', '.join(STANDINGS)}, got {self.standing!r}")


# What the trainer and the controller call on each part, beside `problems`.
_REQUIRED = {
    "allocation": ("weights", "uses_accuracy", "uses_questions"),
    "functional": ("entropy", "of_sample"),
    "pushed": (),
    "selection": ("weights", "selects"),
    "target": ("bounds", "level", "needs_anchor"),
    "controller": ("initial_alpha", "next_alpha", "applied", "allows", "nearest", "smooth", "saturated", "uses_target"),
    "penalty": ("value", "slope", "signal", "uses_target"),
    "reward_shaping": ("change", "changes", "uses_accuracy", "uses_questions", "uses_entropy"),
    "advantage_shaping": ("shape", "shapes", "uses_accuracy", "uses_entropy", "steers"),
}

_BASES = {kind: "".join(word.capitalize() for word in kind.split("_")) for kind in PART_KINDS}
"""The class of the public names that parts of a kind derive from: AdvantageShaping for advantage_shaping."""

_parts: dict[str, dict[str, type]] = {kind: {} for kind in PART_KINDS}
_methods: dict[str, Callable[[], Method]] = {}

PartClass = TypeVar("PartClass", bound=type)


def register_allocation(name: str) -> Callable[[PartClass], PartClass]:
    """Register a dataclass derived from ``Allocation`` as ``entropy/allocation=<name>``."""
    return _register_part("allocation", name)


def register_functional(name: str) -> Callable[[PartClass], PartClass]:
    """Register a dataclass derived from ``Functional`` as ``entropy/functional=<name>`` and ``entropy/pushed``."""

    def register(cls: PartClass) -> PartClass:
        return register_pushed(name)(_register_part("functional", name)(cls))

    return register


def register_pushed(name: str) -> Callable[[PartClass], PartClass]:
    """Register what ``entropy/pushed`` may be in addition to the functionals."""
    return _register_part("pushed", name)


def register_target(name: str) -> Callable[[PartClass], PartClass]:
    """Register a dataclass derived from ``Target`` as ``entropy/target=<name>``."""
    return _register_part("target", name)


def register_controller(name: str) -> Callable[[PartClass], PartClass]:
    """Register a dataclass derived from ``Controller`` as ``entropy/controller=<name>``."""
    return _register_part("controller", name)


def register_selection(name: str) -> Callable[[PartClass], PartClass]:
    """Register a dataclass derived from ``Selection`` as ``entropy/selection=<name>``."""
    return _register_part("selection", name)


def register_penalty(name: str) -> Callable[[PartClass], PartClass]:
    """Register a dataclass derived from ``Penalty`` as ``entropy/penalty=<name>``."""
    return _register_part("penalty", name)


def register_reward_shaping(name: str) -> Callable[[PartClass], PartClass]:
    """Register a dataclass derived from ``RewardShaping`` as ``entropy/reward_shaping=<name>``."""
    return _register_part("reward_shaping", name)


def register_advantage_shaping(name: str) -> Callable[[PartClass], PartClass]:
    """Register a dataclass derived from ``AdvantageShaping`` as ``entropy/advantage_shaping=<name>``."""
    return _register_part("advantage_shaping", name)


def _register_part(part: str, name: str) -> Callable[[PartClass], PartClass]:
    def register(cls: PartClass) -> PartClass:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{part} {name!r}: {cls.__name__} must be a dataclass, its fields are its settings")
        missing = [member for member in ("problems", *_REQUIRED[part]) if not hasattr(cls, member)]
        if missing:
            raise TypeError(
                f"{part} {name!r}: {cls.__name__} lacks {', '.join(missing)}; derive it from verl_aer.{_BASES[part]}"
            )
        _refuse_another(_parts[part], part, name, cls)
        cls.kind = name
        _parts[part][name] = cls
        return cls

    return register


def register_method(name: str) -> Callable[[Callable[[], Method]], Callable[[], Method]]:
    """Register a function that builds the method ``+entropy=<name>``; its docstring has the formula and the source."""

    def register(build: Callable[[], Method]) -> Callable[[], Method]:
        _refuse_another(_methods, "method", name, build)
        _methods[name] = build
        return build

    return register


def _refuse_another(known: dict[str, Any], what: str, name: str, entry: Any) -> None:
    # Importing a module a second time (a notebook's reload, a test runner) registers the same definition
    # again.
    if name in known and known[name].__qualname__ != entry.__qualname__:
        raise ValueError(f"{what} {name!r} is already registered by {known[name].__qualname__}; choose another name")


def get_part(part: str, name: str) -> type:
    """The dataclass registered as ``name``; UnknownNameError lists the known ones."""
    _register_own()
    return _look_up(_parts[part], part, name)


def part_names(part: str) -> list[str]:
    """Registered names of one of PART_KINDS, sorted."""
    _register_own()
    return sorted(_parts[part])


def get_method(name: str) -> Method:
    """A fresh copy of the method registered as ``name``; UnknownNameError lists the known ones."""
    return method_builder(name)()


def method_builder(name: str) -> Callable[[], Method]:
    """The function registered as ``name``: its docstring is the method's formula and source."""
    _register_own()
    return _look_up(_methods, "method", name)


def method_names() -> list[str]:
    """Registered methods, sorted."""
    _register_own()
    return sorted(_methods)


def _register_own() -> None:
    # Here and not above: the methods import the parts, and the parts import this module.
    importlib.import_module("verl_aer.public")


def _look_up(known: dict[str, Any], what: str, name: str) -> Any:
    if name not in known:
        raise UnknownNameError(
            f"no {what} is named {name!r}{suggestion(name, known)}; known: {', '.join(sorted(known))}"
        )
    return known[name]


def suggestion(name: str, known: Any) -> str:
    """``" (did you mean 'x'?)"`` for a name close to a known one, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
