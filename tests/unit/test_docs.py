"""The Markdown files name only what exists, and their generated parts are current."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import typer

from tools.write_docs import ROOT, generated_pages
from verl_aer import EntropyConfig, get_part, method_names, part_names
from verl_aer._settings import setting_names
from verl_aer.cli.main import app
from verl_aer.config.schema import COMMON_SETTINGS
from verl_aer.control.metrics import METRICS
from verl_aer.parts.base import ROLES

PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("examples/*/README.md"),
    ROOT / "slurm" / "README.md",
    ROOT / "data_prep" / "README.md",
]
EXTENDING = ROOT / "docs" / "extending.md"
"""Its method and part are the reader's."""

GENERATED = generated_pages()

FOLDERS = "examples|slurm|data_prep|benchmarks|tests|tools|verl_aer|docs|constraints"
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", flags=re.DOTALL | re.MULTILINE)


def for_each(pages: Iterable[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def code_of(page: Path) -> str:
    """Return the code of a page, one command per line."""
    pieces = [block or inline for block, inline in CODE.findall(page.read_text())]
    return re.sub(r"\s*\\\n\s*", " ", "\n".join(pieces))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@for_each(GENERATED)
def test_a_generated_page_is_current(page):
    assert page.read_text() == GENERATED[page], "run `python -m tools.write_docs`"


def test_every_page_of_a_method_has_a_method():
    assert {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")} == set(method_names())


@for_each(PAGES)
def test_local_links_and_their_anchors_exist(page):
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@for_each(PAGES)
def test_named_files_and_modules_exist(page):
    text = page.read_text()
    files = re.findall(rf"(?<![\w/])(?:{FOLDERS})/[\w./-]+\.(?:py|sh|sbatch|md|txt|png|yaml|example)\b", text)
    modules = re.findall(rf"python3? -m ((?:{FOLDERS})[\w.]*)", text)
    for name in [*files, *(module.replace(".", "/") for module in modules)]:
        # The reader makes it.
        if name != "slurm/env.sh":
            found = [ROOT / name, ROOT / f"{name}.py", ROOT / name / "__main__.py"]
            assert any(path.is_file() for path in found), name


@for_each(PAGES)
def test_named_targets_of_make_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"(?:^|&& )make (?:[A-Z_]+=(?:\"[^\"]*\"|\S+) )*([a-z-]+)", code_of(page), flags=re.MULTILINE)
    assert set(named) <= targets


def settings() -> Iterator[str]:
    """Yield every key below `entropy`."""
    yield from setting_names(EntropyConfig)
    for key, common in COMMON_SETTINGS.items():
        yield from (f"{key}.{name}" for name in setting_names(type(common)))
    for role in ROLES:
        yield f"{role}.kind"
        for part in part_names(role):
            yield from (f"{role}.{name}" for name in setting_names(get_part(role, part)))


@for_each([page for page in PAGES if page != EXTENDING])
def test_named_settings_methods_and_parts_exist(page):
    code = code_of(page)
    parts = {f"{role}={name}" for role in ROLES for name in part_names(role)}
    assert set(re.findall(r"\bentropy\.([a-z][a-z_.]*[a-z])\b(?!\()", code)) <= set(settings())
    # Without the plus veRL's own primary config would refuse it.
    assert set(re.findall(r"(?<![\w./-])(\+?entropy)=[a-z]", code)) <= {"+entropy"}
    assert set(re.findall(r"\+entropy=([a-z_]+)", code)) <= set(method_names())
    assert set(re.findall(r"\bentropy/([a-z_]+=[a-z_]+)", code)) <= parts


@for_each(PAGES)
def test_named_metrics_exist(page):
    named = re.findall(r"(?<![\w./-])((?:actor/)?aer/[a-z_/]*[a-z])(?![\w./*-])", code_of(page))
    assert set(named) <= {metric.name for metric in METRICS}


@for_each(PAGES)
def test_named_commands_of_verl_aer_and_their_options_exist(page):
    for name, rest in re.findall(r"\bverl-aer ([a-z][a-z-]*)([^\n#`]*)", code_of(page)):
        command = typer.main.get_command(app).commands[name]
        if hasattr(command, "commands"):
            command = command.commands[rest.split()[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= known, f"verl-aer {name}{rest}"
