"""What the registry knows of the methods, as a table and as pages: for the command line and for docs/methods.md."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from verl_aer._settings import Settings, description, setting_names
from verl_aer._tables import Table, as_markdown
from verl_aer.config.schema import COMMON_SETTINGS, EntropyConfig
from verl_aer.methods.base import Method, get_method, method_builder, method_names
from verl_aer.parts.base import ROLES, Part, part_names

NEUTRAL = {
    field.name: field.default_factory().kind
    for field in dataclasses.fields(Method)
    if field.name in ROLES and field.default_factory is not dataclasses.MISSING
}
"""The parts that a method has without naming them."""

HEADER = """# The methods

Written by `verl-aer methods --markdown`. *provenance* says how far a definition can be traced: *published* is what the
paper or the authors' code says, with the differences named; *our reading* is a method whose body we did not have.
Choose one with `+entropy=NAME`, see [the README](../README.md#your-own-run). A part that a row does not name is
`pushed: same`, `token_selection: all`, `regularizer: bonus`, and no shaping of rewards or advantages.

![Entropy and coefficient of eight methods around a synthetic plant](simulated-methods.png)

*Around a synthetic plant that loses 5 % of its entropy a step and gains 3 nats per unit of alpha: a picture of the
rules, not of a model. The defaults are those of each source, but for the step sizes of `aer` and `entropic`, which
have to fit the plant's gain. Left alone the entropy is gone after 100 steps; a fixed coefficient holds some level,
which no one chose; AER holds its own, AEnt the lower end of its band, Skywork-OR1 and EntroPIC a number of nats;
SIREN's pull is proportional to the distance from its anchor and ends up between; CEEH-ME's coefficient becomes a
penalty in the second half. What shapes rewards or advantages without alpha (CEEH-EA, STEER, ARM, ARES) has no part in
such a picture. The caption is the command.*
"""

LEFT_OUT = Table(
    "Neighbours that are not here",
    ["method", "source", "why"],
    [
        [
            "ACPO",
            "arXiv 2510.08899",
            "Credits the steps of a response that a segmentation by meaning finds, by an estimate of mutual "
            "information. Neither the segmentation nor the estimate is known to us beyond the abstract.",
        ],
        [
            "ETPO",
            "arXiv 2402.06700",
            "Another algorithm: a critic of Q-values over the whole vocabulary, trained by a soft Bellman update "
            "inside each action. No shaping of veRL's advantages equals it; veRL's critic has one value a token.",
        ],
        [
            "ReLaX",
            "arXiv 2512.07558",
            "Acts on hidden states: the spread of a Koopman operator's spectrum, fitted with a learned dictionary. "
            "veRL's loss function gets log-probs and entropies; the authors' repository has no code yet.",
        ],
        [
            "AEPO (arbitrary entropy)",
            "arXiv 2510.08141",
            "Replaces rollouts by others that are drawn at another temperature: it acts on sampling, before advantages "
            "and loss.",
        ],
        [
            "Repository rule of EPO",
            "arXiv 2509.22576",
            "Adds a constant where a token's entropy is outside its band. A constant has no gradient: it moves the "
            "logged loss and nothing else. `epo` is the paper's hinge.",
        ],
    ],
)
"""What was looked at and left out, with the reason."""


def method_table() -> Table:
    """One row a method: its parts, provenance, source and what it does."""
    methods = {name: get_method(name) for name in method_names()}
    rows = [
        [name, " × ".join(_named_parts(method)), method.provenance, method.source, method.summary]
        for name, method in methods.items()
    ]
    return Table("methods, each a composition of parts", ["method", "parts", "provenance", "source", "in short"], rows)


def source_table() -> Table:
    """One row a published or read method: what its source says, and where ours is another."""
    rows = []
    for name in method_names():
        method = get_method(name)
        if method.provenance in ("published", "reimplementation"):
            agrees = "differs" if method.differences else "agrees"
            rows.append([name, method.source, agrees, method.differences or "As published."])
    return Table("Ours against the source", ["method", "source", "", "where and why"], rows)


def _named_parts(method: Method) -> Iterator[str]:
    for part in ROLES:
        kind = getattr(method, part).kind
        if kind == NEUTRAL.get(part):
            continue
        if part == "pushed":
            yield f"{kind} pushed"
        else:
            yield f"no {part}" if kind == "none" else kind


def methods_page() -> str:
    """All methods as Markdown: the table, then each in full, then the settings that all of them have."""
    sections = [HEADER, as_markdown(method_table())]
    for table in (source_table(), LEFT_OUT):
        sections.append(f"## {table.title}\n\n{as_markdown(table)}")
    for name in method_names():
        sections.append(f"## {name}\n\n```\n{_joined(_method_lines(name))}```\n")
    sections.append(f"## Settings of every method\n\n```\n{_joined(_common_lines())}```\n")
    return "\n".join(sections)


def explanation(name: str) -> str:
    """One method in full: formula, parts with their rules and settings, veRL's own settings, what to watch.

    Raises:
        UnknownNameError: it is not registered; lists the known ones.
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
    yield f"    entropy/{kind}=NAME chooses another: {others}."
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
    # As it is written on the command line: null and true.
    yield f"  {prefix}.{name}={value if isinstance(value, str) else json.dumps(value)}"
    for line in textwrap.wrap(description(settings, name), 110):
        yield f"      {line}"


def rule(part: type[Part]) -> str:
    """Return the docstring of a part, without its examples."""
    return inspect.cleandoc(part.__doc__ or "").split("\n\n>>>")[0].strip()


def _verl_lines(method: Method) -> Iterator[str]:
    if method.verl:
        yield ""
        yield "veRL's own settings, which the preset makes"
    for key, value in method.verl.items():
        yield f"  {key}={value}"
