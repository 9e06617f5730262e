from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from verl_aer.cli.main import main
from verl_aer.control.metrics import MetricsRow
from verl_aer.reports.html_report import html_report


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
    assert len(re.findall("data:image/png;base64,", page)) == 4
    assert "■</span> none" in page
    assert "verl-aer report &lt;log&gt;" in page
    assert "&quot;method&quot;: &quot;none&quot;" in page


def test_the_table_has_a_row_for_each_seed():
    arms = {"aer": [run([1.0] + [0.4] * 20), run([3.0] + [0.2] * 20)], "a<b": [run([1.0, 0.5])]}
    cells = Page(html_report(arms, {})).cells
    columns = cells.index("accuracy") + 1
    table = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    assert [row[0] for row in table] == ["run", "aer 1", "aer 2", "a<b"]
    assert [row[table[0].index("entropy")] for row in table[1:3]] == ["1.000 → 0.400", "3.000 → 0.200"]


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
MEASURE = """<script>
const table = document.querySelector('.wide'), page = document.documentElement;
const hidden = [table, page].map(part => part.scrollWidth - part.clientWidth);
document.body.innerHTML = `<p>measured ${hidden}</p>`;
</script>"""


def hidden_pixels(page: str, width: int, folder: Path) -> list[int]:
    """Pixels of the table and of the page that a window of this width does not show, as a browser lays them out."""
    file = folder / "page.html"
    # A window of a headless browser has a least width; a frame has none.
    file.write_text(page.replace("</body>", MEASURE + "</body>"))
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe src="page.html" width="{width}" height="900" style="border:0"></iframe>'
        "<script>onload = () => { document.title = document.querySelector('iframe').contentDocument.body.innerText; "
        "document.body.append(document.title); }</script>"
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=5000", f"--user-data-dir={folder}/profile", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [int(number) for number in re.search(r"measured (\d+),(\d+)", done.stdout).groups()]


@pytest.mark.skipif(BROWSER is None, reason="no browser to lay the page out")
def test_the_table_fits_a_window_of_1200_pixels_and_a_phone_scrolls_nothing_else(tmp_path):
    arms = {"aer_no_allocation": [run([1.0] * 20 + [0.4] * 200, aer__target=0.4)] * 2, "fixed-0.01": [run([1.0, 0.5])]}
    page = html_report(arms, {}, "verl-aer report " + "aer_no_allocation=runs/metrics.jsonl " * 4)
    assert hidden_pixels(page, 1200, tmp_path) == [0, 0]
    assert hidden_pixels(page, 390, tmp_path)[1] == 0


def test_saturation_and_skipped_updates_are_pointed_out():
    quiet = html_report({"aer": [run([1.0, 0.5])]}, {})
    assert "Look at" not in quiet
    held_back = run([1.0, 0.5], aer__saturated=1, aer__error=0.1, aer__skipped_updates=2)
    loud = html_report({"aer": [held_back]}, {})
    assert "aer: alpha sat at its bound in 1 of 2 steps: raise entropy.controller.alpha_max" in loud
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
