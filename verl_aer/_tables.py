"""Tables of text for a terminal, for Markdown and for HTML."""

from __future__ import annotations

import html
from typing import NamedTuple


class Table(NamedTuple):
    """Text cells below a header; every row has the length of the header."""

    title: str
    header: list[str]
    rows: list[list[str]]


def as_text(table: Table) -> str:
    """Format `table` in aligned columns, below its title.

    >>> print(as_text(Table("by level", ["level", "n"], [["2", "30"], ["all", "100"]])), end="")
    by level
    level  n
    -----  ---
    2      30
    all    100
    """
    widths = [max(len(row[column]) for row in [table.header, *table.rows]) for column in range(len(table.header))]
    lines = [table.title]
    for row in (table.header, ["-" * width for width in widths], *table.rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join(lines) + "\n"


def as_markdown(table: Table) -> str:
    """Format `table` as GitHub Markdown, without its title."""
    lines = ["| " + " | ".join(table.header) + " |", "|" + " --- |" * len(table.header)]
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def as_html(table: Table) -> str:
    """Format `table` as HTML, without its title."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows]
    return "<table>" + "".join(lines) + "</table>"
