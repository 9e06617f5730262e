"""What the registry knows of the methods, as a table and as pages: for the command line and for docs/methods.md."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from verl_aer.methods.registry import PART_KINDS, Method, get_method, method_builder, method_names
from verl_aer.tables import Table, as_markdown

HEADER = """# The methods

Written by `verl-aer methods --markdown`. *standing* says how far a definition can be traced: *published* is what the
paper or the authors' code says, with the differences named; *our reading* is a method whose body we did not have.
Choose one with `entropy=NAME`, see [the README](../README.md#your-own-run).
"""


def method_table() -> Table:
    """One row a method: its parts, standing, source and what it does."""
    header = ["method", *PART_KINDS, "standing", "source", "in short"]
    rows = []
    for name in method_names():
        method = get_method(name)
        parts = [getattr(method, kind).kind for kind in PART_KINDS]
        rows.append([name, *parts, method.standing, method.source, method.summary])
    return Table("methods, each a composition of four parts", header, rows)


def methods_page() -> str:
    """All methods as Markdown: the table, then each in full."""
    sections = [HEADER, as_markdown(method_table())]
    for name in method_names():
        sections.append(f"## {name}\n\n```\n{explanation(name)}```\n")
    return "\n".join(sections)


def explanation(name: str) -> str:
    """One method in full: formula, parts with their rules and settings, veRL's own settings, what to watch.

    Raises:
        UnknownNameError: nobody registered it; lists the known ones.
    """
    method = get_method(name)
    lines = [f"{name}: {method.summary}", f"standing: {method.standing}", f"source: {method.source}", ""]
    lines += (inspect.getdoc(method_builder(name)) or "").splitlines()
    for kind in PART_KINDS:
        lines += ["", *_part_lines(kind, getattr(method, kind))]
    lines += ["", f"entropy.aggregation={method.aggregation}", *_verl_lines(method)]
    if method.watch:
        lines += ["", f"watch: {method.watch}"]
    lines += ["", f"use it: hydra.searchpath=[pkg://verl_aer.config] +entropy={name}"]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _part_lines(kind: str, part: Any) -> Iterator[str]:
    yield f"{kind}: {part.kind}"
    for line in (inspect.getdoc(type(part)) or "").split("\n\n>>>")[0].splitlines():
        yield f"    {line}"
    for field in dataclasses.fields(part):
        yield f"  entropy.{kind}.{field.name}={getattr(part, field.name)}"


def _verl_lines(method: Method) -> Iterator[str]:
    if method.verl:
        yield ""
        yield "veRL's own settings, which the preset makes"
    for key, value in method.verl.items():
        yield f"  {key}={value}"
