"""Describe the registered methods: a table of all, and one in full."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from verl_aer._settings import Settings, description, setting_names, shown
from verl_aer._tables import Table
from verl_aer.config.schema import COMMON_SETTINGS, EntropyConfig
from verl_aer.methods.base import Method, get_method, method_builder, method_names
from verl_aer.parts.base import ROLES, Part, part_names

NEUTRAL = {
    field.name: field.default_factory().kind
    for field in dataclasses.fields(Method)
    if field.name in ROLES and field.default_factory is not dataclasses.MISSING
}
"""Parts with a neutral default, which most methods keep."""


def method_table() -> Table:
    """Make a table with one row per method: parts, provenance, source and summary."""
    methods = {name: get_method(name) for name in method_names()}
    rows = [
        [name, " × ".join(_named_parts(method)), method.provenance, method.source, method.summary]
        for name, method in methods.items()
    ]
    return Table("methods, each a composition of parts", ["method", "parts", "provenance", "source", "in short"], rows)


def _named_parts(method: Method) -> Iterator[str]:
    for part in ROLES:
        kind = getattr(method, part).kind
        if kind == NEUTRAL.get(part):
            continue
        if part == "pushed":
            yield f"{kind} pushed"
        else:
            yield f"no {part}" if kind == "none" else kind


def explanation(name: str) -> str:
    """Describe one method in full: formula, parts with rules and settings, veRL's settings, and metrics to watch.

    Raises:
        UnknownNameError: the method is not registered; lists the known ones.
    """
    return _joined([*_method_lines(name), "", "settings of every method", *_common_lines()])


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _method_lines(name: str) -> list[str]:
    method = get_method(name)
    lines = [f"{name}: {method.summary}", f"provenance: {method.provenance}", f"source: {method.source}", ""]
    lines += (inspect.getdoc(method_builder(name)) or "").splitlines()
    for kind in ROLES:
        lines += ["", *_part_lines(kind, getattr(method, kind))]
    lines += ["", "loss:", *_one_setting(EntropyConfig, "entropy", "aggregation", method.aggregation)]
    lines += _verl_lines(method)
    if method.differences:
        lines += ["", "against the source:", *(f"    {line}" for line in textwrap.wrap(method.differences, 112))]
    if method.watch:
        lines += ["", f"watch: {method.watch}"]
    return [*lines, "", f"use it: +entropy={name}"]


def _part_lines(kind: str, part: Any) -> Iterator[str]:
    yield f"{kind}: {part.kind}"
    yield f"    {ROLES[kind].capitalize()}."
    others = ", ".join(other for other in part_names(kind) if other != part.kind)
    yield f"    entropy/{kind}=NAME selects another: {others}."
    if part.kind != NEUTRAL.get(kind):
        yield ""
        for line in rule(type(part)).splitlines():
            yield f"    {line}"
    yield from _setting_lines(f"entropy.{kind}", part)


def _common_lines() -> Iterator[str]:
    yield from _one_setting(EntropyConfig, "entropy", "on_missing_state", "error")
    for name, settings in COMMON_SETTINGS.items():
        yield f"entropy.{name}: {description(EntropyConfig, name)}"
        yield from _setting_lines(f"entropy.{name}", settings)


def _setting_lines(prefix: str, settings: Settings) -> Iterator[str]:
    for name in setting_names(type(settings)):
        yield from _one_setting(type(settings), prefix, name, getattr(settings, name))


def _one_setting(settings: type[Settings], prefix: str, name: str, value: Any) -> Iterator[str]:
    yield f"  {prefix}.{name}={shown(value)}"
    for line in textwrap.wrap(description(settings, name), 110):
        yield f"      {line}"


def rule(part: type[Part]) -> str:
    """Return the docstring of a part, without its examples."""
    return inspect.cleandoc(part.__doc__ or "").split("\n\n>>>")[0].strip()


def _verl_lines(method: Method) -> Iterator[str]:
    if method.verl:
        yield ""
        yield "veRL's own settings, which the preset sets"
    for key, value in method.verl.items():
        yield f"  {key}={value}"
