"""Write the generated pages and tables of docs/ from the registry, the schema and the metrics.

    python -m tools.write_docs

A whole page is generated, or the lines between `<!-- generated: NAME -->` and `<!-- end -->` of a page.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_aer._files import write_text_atomically
from verl_aer._settings import Settings, description, shown
from verl_aer._tables import Table, as_markdown
from verl_aer.config.schema import COMMON_SETTINGS, EntropyConfig, parse_entropy_config
from verl_aer.control.metrics import markdown_table
from verl_aer.methods.base import Method, get_method, method_builder, method_names
from verl_aer.parts.base import ROLES, get_part, part_names
from verl_aer.reports.method_catalog import NEUTRAL, rule

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

NOTICE = "<!-- `python -m tools.write_docs` writes this page. -->\n\n"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)

LITERAL = re.compile(r"(`[^`]*`)")
SPECIAL = re.compile(r"([*~<\[])")
METRIC = re.compile(r"\b(?:actor|aer)/[\w/]+")


def generated_pages() -> dict[Path, str]:
    """Return the text of each page that is generated as a whole or in part."""
    pages = {DOCS / "parts.md": parts_page()}
    pages |= {DOCS / "methods" / f"{name}.md": method_page(name) for name in method_names()}
    blocks = {
        "aer": as_markdown(aer_table()),
        "common": as_markdown(common_table()),
        "metrics": markdown_table(),
        "methods": as_markdown(methods_table()),
        "differences": as_markdown(differences_table()),
    }
    for page in (DOCS / "configuration.md", DOCS / "metrics.md", DOCS / "methods.md"):
        pages[page] = BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found[2]]}\n{found[4]}", page.read_text())
    return pages


def aer_table() -> Table:
    """List the parts of the method `aer` and all their settings."""
    config, rows = parse_entropy_config({"method": "aer"}), []
    for role in ROLES:
        part = getattr(config, role)
        rows.append([f"**`entropy/{role}`**", f"[`{part.kind}`](parts.md#{anchor(role, part.kind)})", _role(role)])
        rows += _setting_rows(f"entropy.{role}.", part)
    return Table("", ["key", "default", "meaning"], rows)


def common_table() -> Table:
    """List the settings that every method has outside its parts."""
    rows = [
        _setting_row(EntropyConfig, "entropy.", name, EntropyConfig.model_fields[name].default)
        for name in ("aggregation", "on_missing_state")
    ]
    for name, settings in COMMON_SETTINGS.items():
        rows += _setting_rows(f"entropy.{name}.", settings)
    return Table("", ["key", "default", "meaning"], rows)


def methods_table() -> Table:
    """List the methods with their source and what they do."""
    rows = []
    for name in method_names():
        method = get_method(name)
        rows.append([f"[`{name}`](methods/{name}.md)", in_cell(method.summary), method.provenance, link(method.source)])
    return Table("", ["method", "what it does", "provenance", "source"], rows)


def differences_table() -> Table:
    """List where each method with a source differs from it."""
    rows = []
    for name in method_names():
        method = get_method(name)
        if method.provenance in ("published", "reimplementation"):
            rows.append([f"[`{name}`](methods/{name}.md)", in_cell(method.differences) or "none"])
    return Table("", ["method", "differences from the source, and their reasons"], rows)


def method_page(name: str) -> str:
    """Describe one method: formula, parts, settings outside `entropy`, differences, metrics to watch."""
    method = get_method(name)
    sections = [
        f"{NOTICE}# {name}\n\n{as_prose(method.summary[0].upper() + method.summary[1:])}.\n",
        f"- Choose it with `+entropy={name}`.\n- Source: {link(method.source)}.\n- Provenance: {method.provenance}.\n",
        f"## Formula\n\n{as_prose(inspect.getdoc(method_builder(name)) or '')}\n",
        f"## Parts\n\n{as_markdown(Table('', ['part', 'choice', 'settings'], list(_part_rows(method))))}",
        f"The entropy term is averaged with `entropy.aggregation={method.aggregation}`.\n",
    ]
    if method.verl:
        settings = "\n".join(f"{key}={value}" for key, value in method.verl.items())
        sections.append(f"## Settings of veRL\n\nThe preset also makes these settings:\n\n```\n{settings}\n```\n")
    if method.differences:
        sections.append(f"## Differences from the source\n\n{as_prose(method.differences)}\n")
    if method.watch:
        sections.append("## What to watch\n\n" + METRIC.sub(r"`\g<0>`", method.watch) + ".\n")
    return "\n".join(sections)


def parts_page() -> str:
    """Describe every part with its formula and settings."""
    sections = [
        f"{NOTICE}# Parts\n",
        "A method combines one part for each of the questions below. `entropy/ROLE=NAME` chooses another part, and\n"
        "`entropy.ROLE.SETTING=VALUE` changes a setting of it. [Extending](extending.md) shows how to add one.\n",
    ]
    for role, question in ROLES.items():
        sections.append(f"## {role}\n\n`entropy/{role}`: {question}.\n")
        if role == "pushed":
            sections.append("It is `same` (the default) or another [measure](#measure) with its settings.\n")
        else:
            sections += [_part_section(role, name) for name in part_names(role)]
    return "\n".join(sections)


def _part_section(role: str, name: str) -> str:
    cls = get_part(role, name)
    text = f"### {role}: {name}\n\n{as_prose(rule(cls))}\n"
    rows = _setting_rows("", cls())
    return f"{text}\n{as_markdown(Table('', ['setting', 'default', 'meaning'], rows))}" if rows else text


def _part_rows(method: Method) -> Iterator[list[str]]:
    for role in ROLES:
        part = getattr(method, role)
        if part.kind == NEUTRAL.get(role):
            continue
        page = "parts.md#" + anchor("measure" if role == "pushed" else role, part.kind)
        settings = [f"`{name}={shown(value)}`" for name, value in part.model_dump().items()]
        yield [f"`entropy/{role}`", f"[`{part.kind}`](../{page})", ", ".join(settings)]


def _setting_rows(prefix: str, settings: Settings) -> list[list[str]]:
    return [_setting_row(type(settings), prefix, name, value) for name, value in settings.model_dump().items()]


def _setting_row(settings: type[Settings], prefix: str, name: str, value: Any) -> list[str]:
    return [f"`{prefix}{name}`", _value(value), in_cell(description(settings, name))]


def _role(role: str) -> str:
    return ROLES[role][0].upper() + ROLES[role][1:]


def _value(value: Any) -> str:
    return f"`{shown(value)}`"


def anchor(role: str, name: str) -> str:
    """Return the anchor of a part on the page of parts."""
    return "pushed" if name == "same" else f"{role}-{name}"


def link(source: str) -> str:
    """Link the arXiv numbers of a source.

    >>> link("arXiv 2510.10959")
    '[arXiv 2510.10959](https://arxiv.org/abs/2510.10959)'
    """
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def in_cell(text: str) -> str:
    """Write text as one cell of a Markdown table."""
    return as_prose(" ".join(text.split())).replace("|", r"\|").rstrip(".")


def as_prose(text: str) -> str:
    r"""Write a docstring as Markdown: formulas stay literal, and so do indented lines.

    >>> print(as_prose("H* = tau * H0, see ``tau``:\n\n    w * x"))
    H\* = tau \* H0, see `tau`:
    <BLANKLINE>
        w * x
    """
    return "\n".join(line if line.startswith("    ") else _escaped(line) for line in text.splitlines())


def _escaped(line: str) -> str:
    pieces = LITERAL.split(line.replace("``", "`"))
    return "".join(piece if piece.startswith("`") else SPECIAL.sub(r"\\\1", piece) for piece in pieces)


def main() -> None:
    pages = generated_pages()
    for page, text in pages.items():
        write_text_atomically(page, text)
    for page in set((DOCS / "methods").glob("*.md")) - set(pages):
        page.unlink()


if __name__ == "__main__":
    main()
