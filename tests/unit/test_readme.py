"""The README and the code agree on settings and metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from verl_aer import parse_entropy_config, to_mapping
from verl_aer.control.metrics import markdown_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def leaves(node: dict, path: tuple[str, ...] = ()) -> dict[str, object]:
    """Dotted key → value of every leaf."""
    found = {}
    for key, value in node.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {".".join((*path, key)): value}
    return found


def test_the_config_table_is_the_presets():
    preset = to_mapping(parse_entropy_config({"method": "aer"}))
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| `([^`]*)` \|", README, flags=re.MULTILINE))
    table = {key: yaml.safe_load(value) for key, value in rows.items()}
    assert table == leaves(preset)
    assert len(table) == 39


def test_the_metrics_table_is_generated():
    assert markdown_table().strip() in README


@pytest.mark.parametrize("document", ["README.md", "examples/countdown/README.md"])
def test_local_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    for link in links:
        assert ((ROOT / document).parent / link).exists(), link
