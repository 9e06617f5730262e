"""The base of all settings: an immutable model that validates its values.

The description of a setting is the docstring below it; its bounds are those of its ``Field``. The config's error
messages, ``verl-aer methods NAME`` and the tables in docs/ are generated from both.
"""

from __future__ import annotations

import json
import types
import typing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo

_TYPES = {float: "a number", int: "a whole number", bool: "true or false", str: "a name"}


class Settings(BaseModel):
    """Base of settings: refuses unknown names, type conversions, infinity and NaN."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # A default may contradict the value of another setting.
        validate_default=True,
    )


def at_least(value: float, name: str, earlier: ValidationInfo) -> float:
    """Return ``value``, or raise ValueError if it is below the earlier setting ``name`` and that setting is valid.

    For field validators. The text of a validator's ValueError is the requirement on the value: ">= low (0.1)".
    """
    low = earlier.data.get(name)
    if low is not None and value < low:
        raise ValueError(f">= {name} ({low:g})")
    return value


def shown(value: Any) -> str:
    """Write a value as on the command line.

    >>> shown(None), shown(True), shown("linear")
    ('null', 'true', 'linear')
    """
    return value if isinstance(value, str) else json.dumps(value)


def setting_names(settings: type[Settings]) -> list[str]:
    """List the names of a model's settings in the order of their definition."""
    return list(settings.model_fields)


def description(settings: type[Settings], name: str) -> str:
    """Return the description of a setting and its bounds, on one line.

    >>> from verl_aer.parts.target import Band
    >>> description(Band, "low")
    'Lowest entropy that leaves alpha unchanged, nats per token. >= 0.'
    """
    text = " ".join((settings.model_fields[name].description or "").split())
    stated = allowed_values(settings, name) if typing.get_origin(_not_null(settings, name)) is Literal else ""
    limits = bounds(settings, name) or stated
    return f"{text} {limits[0].upper()}{limits[1:]}." if limits else text


def bounds(settings: type[Settings], name: str) -> str:
    """Return the interval of a number; empty for a setting without bounds.

    >>> from verl_aer.parts.target import Anchored
    >>> bounds(Anchored, "tau"), bounds(Anchored, "initial_entropy"), bounds(Anchored, "anchor_steps")
    ('in (0, 1]', '> 0', '>= 1')
    """
    low = high = None
    for limit in settings.model_fields[name].metadata:
        if hasattr(limit, "gt"):
            low = ("> ", "(", limit.gt)
        elif hasattr(limit, "ge"):
            low = (">= ", "[", limit.ge)
        elif hasattr(limit, "lt"):
            high = ("< ", ")", limit.lt)
        elif hasattr(limit, "le"):
            high = ("<= ", "]", limit.le)
    if low and high:
        return f"in {low[1]}{low[2]:g}, {high[2]:g}{high[1]}"
    (sign, _, value) = low or high or ("", "", None)
    return f"{sign}{value:g}" if value is not None else ""


def allowed_values(settings: type[Settings], name: str) -> str:
    """Return the type or the choices of a setting.

    >>> from verl_aer.parts.target import Anchored
    >>> allowed_values(Anchored, "tau"), allowed_values(Anchored, "initial_entropy")
    ('a number', 'null or a number')
    """
    annotation = _not_null(settings, name)
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else None
    text = f"one of {', '.join(map(str, choices))}" if choices else _TYPES[annotation]
    return f"null or {text}" if may_be_null(settings, name) else text


def may_be_null(settings: type[Settings], name: str) -> bool:
    """Tell whether a setting may be null."""
    return type(None) in typing.get_args(settings.model_fields[name].annotation)


def _not_null(settings: type[Settings], name: str) -> Any:
    """Return the annotation of a setting without null."""
    annotation = settings.model_fields[name].annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = [option for option in typing.get_args(annotation) if option is not type(None)]
    return annotation
