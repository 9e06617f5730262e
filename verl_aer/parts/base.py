"""The registry of parts: a method of entropy control is composed of one part per role.

A part is a model whose fields are its settings:

    allocation         how much of alpha does each trajectory get?     weights(groups) -> (P,), >= 0
    measure            which entropy does the controller get?          entropy(logits (T, V)) -> (T,) nats
    pushed             which entropy does the loss push?               a measure, or ``same``
    token_selection    which tokens of a response count?               weights(entropy, mask) -> (N, T), >= 0
    target             which entropy is the goal?                      bounds(initial_entropy, history) -> nats or None
    controller         how does the global coefficient alpha move?     update(state, seen) -> (state, alpha)
    regularizer        how does a token's entropy enter the loss?      value(entropy, signal) -> (N, T)
    reward_shaping     what is added to a rollout's reward?            change(rollouts) -> (N,)
    advantage_shaping  how does a token's advantage change?            shape(tokens, ...) -> (N, T)

Each role has a base class. One decorator adds a part:

>>> from verl_aer import Allocation, get_part, register_part
>>> @register_part("quadratic_example")
... class Quadratic(Allocation):
...     scale: float = 1.0
...     def weights(self, groups):
...         return self.scale * (1.0 - groups.accuracy) ** 2
>>> get_part("allocation", "quadratic_example").__name__
'Quadratic'
"""

from __future__ import annotations

import difflib
import inspect
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from verl_aer._settings import Settings
from verl_aer.errors import VerlAerError

ROLES = {
    "allocation": "how much of the global coefficient each trajectory gets",
    "measure": "which entropy of a token's distribution the controller gets",
    "pushed": "which entropy the loss pushes: the measured one (same), or another measure",
    "token_selection": "which tokens of a response count",
    "target": "which token-mean entropy is the goal",
    "controller": "how the global coefficient alpha moves",
    "regularizer": "how a token's entropy enters the loss",
    "reward_shaping": "what is added to a rollout's reward",
    "advantage_shaping": "how a token's advantage changes",
}
"""The decision of each role, in the order of the config."""


class UnknownNameError(VerlAerError, ValueError):
    """Unregistered part or method; the message lists the known names."""


class Part(Settings, ABC):
    """Base of every part, with its roles, its registered name and its settings."""

    roles: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = ""

    def __init_subclass__(cls, role: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if role is not None:
            cls.roles = (role, *cls.roles)

    def to_mapping(self) -> dict[str, Any]:
        """Convert the part to its registered name and its settings, as in a config."""
        return {"kind": self.kind, **self.model_dump()}


_parts: dict[str, dict[str, type[Part]]] = {role: {} for role in ROLES}

PartClass = TypeVar("PartClass", bound=type[Part])
Entry = TypeVar("Entry")


def register_part(name: str) -> Callable[[PartClass], PartClass]:
    """Register a part under each role of its base class: ``entropy/<role>=<name>``.

    Raises:
        TypeError: the class has no role, or lacks a method of its base class.
        ValueError: another class has the name.
    """

    def register(cls: PartClass) -> PartClass:
        roles = getattr(cls, "roles", ())
        if not roles:
            raise TypeError(
                f"part {name!r}: {cls.__name__} has no role; derive it from the base class of its role, for example "
                "verl_aer.Allocation or verl_aer.Controller"
            )
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(cls.__abstractmethods__))
            raise TypeError(f"{roles[0]} {name!r}: {cls.__name__} does not define {missing}")
        for role in roles:
            refuse_another(_parts[role], role, name, cls)
            _parts[role][name] = cls
        cls.kind = name
        return cls

    return register


def refuse_another(known: Mapping[str, Any], what: str, name: str, entry: Any) -> None:
    """Raise ValueError if another definition has the name.

    The same definition may be registered twice: notebooks and test runners import modules again.
    """
    if name in known and known[name].__qualname__ != entry.__qualname__:
        raise ValueError(f"{what} {name!r} is already registered by {known[name].__qualname__}; choose another name")


def get_part(role: str, name: str) -> type[Part]:
    """Return the class registered as ``name``; UnknownNameError lists the known ones."""
    return look_up(_parts[role], role, name)


def part_names(role: str) -> list[str]:
    """List the registered names of one of ROLES, sorted."""
    return sorted(_parts[role])


def look_up(known: Mapping[str, Entry], what: str, name: str) -> Entry:
    """Return ``known[name]``, or raise an UnknownNameError that lists the known names."""
    if name not in known:
        raise UnknownNameError(
            f"no {what} is named {name!r}{suggestion(name, known)}; known: {', '.join(sorted(known))}"
        )
    return known[name]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for a name close to a known one, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
