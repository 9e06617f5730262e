from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from verl_aer.cli import main
from verl_aer.html_report import html_report
from verl_aer.metrics_log import MetricsRow


def run(entropies: list[float], **last: float) -> list[MetricsRow]:
    rows = [
        MetricsRow(step, {"aer/entropy": entropy, "aer/alpha": 0.01 * step, "aer/accuracy/mean": 0.25})
        for step, entropy in enumerate(entropies, start=1)
    ]
    rows[-1].data.update({name.replace("__", "/"): value for name, value in last.items()})
    return rows


class Page(HTMLParser):
    """Tags that are open, cells in their order, and what would be fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href") and value[:5] != "data:"]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_the_page_is_whole_and_needs_nothing_beside_itself():
    page = html_report({"none": [run([1.0, 0.5])]}, {"none": {"method": "none"}}, "verl-aer report <log>")
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.fetched == []
    assert "<script" not in page
    assert 'name="viewport"' in page
    assert len(re.findall("data:image/png;base64,", page)) == 1
    assert "verl-aer report &lt;log&gt;" in page
    assert "&quot;method&quot;: &quot;none&quot;" in page


def test_numbers_are_means_of_the_seeds_and_a_dash_where_there_are_none():
    arms = {"aer": [run([1.0] + [0.4] * 20), run([3.0] + [0.2] * 20)]}
    cells = Page(html_report(arms, {})).cells
    named = dict(zip(cells[: len(cells) // 2], cells[len(cells) // 2 :], strict=True))
    assert named[""] == "aer"
    assert named["seeds"] == "2"
    assert named["steps"] == "21"
    assert named["entropy, start"] == "2"
    assert named["entropy, end"] == "0.3"
    assert named["α, largest"] == "0.21"
    assert named["target"] == "–"


def test_saturation_and_skipped_updates_are_pointed_out():
    quiet = html_report({"aer": [run([1.0, 0.5])]}, {})
    assert "Look at" not in quiet
    loud = html_report({"aer": [run([1.0, 0.5], aer__saturated_steps=3, aer__skipped_updates=2)]}, {})
    assert "held α back in 3 steps" in loud
    assert "2 entropies were not finite" in loud


def test_the_command_writes_beside_the_first_log_with_the_settings(tmp_path, capsys: pytest.CaptureFixture[str]):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": r.step, "data": r.data}) + "\n" for r in run([1.0, 0.5])))
    (tmp_path / "metrics.jsonl.entropy.json").write_text('{"method": "fixed"}')
    assert main(["report", str(log), "--title", "A & B"]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path}/metrics.html\n"
    page = (tmp_path / "metrics.html").read_text()
    assert "<title>A &amp; B</title>" in page
    assert "&quot;fixed&quot;" in page
