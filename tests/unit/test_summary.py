"""The summary of a run, with each number computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from verl_aer.cli.main import main
from verl_aer.control.metrics import MetricsRow
from verl_aer.reports.summary import WINDOW, advice_on_bounds, bound_that_holds, summarize, summary_table


def run(entropies: list[float], target: float | None = 0.4, **more: list[float]) -> list[MetricsRow]:
    rows = [MetricsRow(step, {"aer/entropy": entropy}) for step, entropy in enumerate(entropies, start=1)]
    for row in rows:
        if target is not None:
            row.data["aer/target"] = target
        row.data.update({f"aer/{name.replace('__', '/')}": values[row.step - 1] for name, values in more.items()})
    return rows


def test_a_run_arrives_when_the_mean_of_20_steps_reaches_the_target():
    # 20 steps at 0.75, then 0.25: after n of the latter the mean is 0.75 - 0.5 n / 20, at most 0.375 from n = 15 on.
    summary = summarize(run([0.75] * 20 + [0.25] * 30, target=0.375))
    assert summary.arrival == 35
    # From there on it continues to 0.25.
    assert summary.band == pytest.approx((0.25 / 0.375 - 1, 0.0))
    assert summary.steps == 50
    assert (summary.first_entropy, summary.last_entropy) == (0.75, 0.25)


def test_a_run_may_arrive_from_below_too():
    # 20 steps at 0.25, then 0.75: 0.25 + 0.5 n / 20 is at least 0.5 from n = 10 on, and reaches 0.75 with n = 20.
    summary = summarize(run([0.25] * 20 + [0.75] * 20, target=0.5))
    assert summary.arrival == 30
    assert summary.band == pytest.approx((0.0, 0.5))


def test_the_band_is_that_of_the_mean_and_not_of_single_steps():
    # Single steps are 50 % off, their mean of 20 never.
    swinging = run([0.8] + [0.6, 0.2] * 30)
    band = summarize(swinging).band
    assert max(map(abs, band)) < 0.05


def test_no_arrival_before_there_are_20_steps_nor_without_a_target():
    assert summarize(run([0.5] + [0.1] * (WINDOW - 2))).arrival is None
    assert summarize(run([0.5] + [0.1] * (WINDOW - 1))).arrival == WINDOW
    without = summarize(run([0.5] + [0.1] * 40, target=None))
    assert (without.target, without.arrival, without.band) == (None, None, None)
    never = summarize(run([0.5] * 40))
    assert (never.arrival, never.band) == (None, None)


def test_steps_of_a_resumed_log_are_named_as_they_are_logged():
    rows = [MetricsRow(row.step + 100, row.data) for row in run([0.75] * 20 + [0.25] * 30, target=0.375)]
    assert summarize(rows).arrival == 135


def test_alpha_accuracy_and_skipped_updates():
    count = 2 * WINDOW
    summary = summarize(
        run(
            [0.5] * count,
            alpha=[0.0, 0.25] * WINDOW,
            accuracy__mean=[0.0, 0.5] * (WINDOW // 2) + [1.0, 0.5] * (WINDOW // 2),
            skipped_updates=[0.0] * (count - 1) + [3.0],
        )
    )
    assert (summary.largest_alpha, summary.skipped_updates) == (0.25, 3)
    assert (summary.first_accuracy, summary.last_accuracy) == (0.25, 0.75)


def test_a_bound_holds_alpha_back_on_the_side_of_the_error():
    assert bound_that_holds({"aer/saturated": 0.0, "aer/error": 1.0}) is None
    assert bound_that_holds({}) is None
    assert bound_that_holds({"aer/saturated": 1.0, "aer/error": 0.1}) == "alpha_max"
    assert bound_that_holds({"aer/saturated": 1.0, "aer/error": -0.1}) == "alpha_min"
    assert bound_that_holds({"aer/saturated": 1.0, "aer/error": None}) == "alpha_min"
    rows = run([0.5] * 5, saturated=[0, 1, 1, 1, 0], error=[1, 1, 1, -1, -1])
    assert summarize(rows).held_back == {"alpha_max": 2, "alpha_min": 1}
    assert advice_on_bounds({"alpha_max": 2, "alpha_min": 1}, steps=5) == [
        "alpha sat at its bound in 2 of 5 steps: raise entropy.controller.alpha_max",
        "alpha sat at its bound in 1 of 5 steps: lower entropy.controller.alpha_min",
    ]
    assert advice_on_bounds({"alpha_max": 0, "alpha_min": 0}, steps=5) == []


def test_a_log_without_our_metrics_has_dashes_and_no_error():
    table = summary_table({"veRL": [[MetricsRow(1, {"actor/entropy": 0.5}), MetricsRow(2, {"aer/entropy": math.nan})]]})
    (row,) = table.rows
    assert row == ["veRL", "2", "–", "–", "–", "–", "–", "–", "0", "0", "–"]


def test_the_command_prints_a_line_for_each_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = tmp_path / "metrics.jsonl"
    rows = run([0.75] * 20 + [0.25] * 30, target=0.375, alpha=[0.125] * 50, accuracy__mean=[0.5] * 50)
    log.write_text("".join(json.dumps({"step": row.step, "data": row.data}) + "\n" for row in rows))
    assert main(["summary", f"none={log}", f"aer={log}", f"aer={log}", "--markdown"]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == ["none", "aer 1", "aer 2"]
    named = dict(zip((cell.strip() for cell in header.strip("|").split("|")), cells[1], strict=True))
    assert named["entropy"] == "0.750 → 0.250"
    assert named["change"] == "-67%"
    assert named["arrives at step"] == "35"
    assert named["then within"] == "-33.3% to +0.0%"
    assert named["largest α"] == "0.125"
    assert main(["summary", str(tmp_path / "nothing.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err
