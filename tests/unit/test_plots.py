"""The figure of a run, read back from its axes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from verl_aer.control.metrics import MetricsRow
from verl_aer.reports.metrics_log import MetricsLogError, MetricsTail, read_metrics_log, series
from verl_aer.reports.plots import COLORS, centered_mean, plot_runs, save_figure
from verl_aer.reports.summary import running_mean


def rows(entropy: float, steps: int = 30, weight: float = 0.5) -> list[MetricsRow]:
    data = {
        "aer/entropy": entropy,
        "aer/target": 0.3,
        "aer/alpha": 0.1,
        "aer/weight/hard": weight,
        "aer/accuracy/mean": 0.4,
        "critic/score/mean": 0.9,
    }
    return [MetricsRow(step, dict(data)) for step in range(1, steps + 1)]


def lines_of(figure, panel: int) -> list[np.ndarray]:
    return [line.get_ydata() for line in figure.axes[panel].lines]


def test_running_mean_is_the_mean_of_the_last_values() -> None:
    values = np.array([[1.0, 2.0, 3.0, 4.0, 10.0]])
    # (1), (1+2)/2, (1+2+3)/3, (2+3+4)/3, (3+4+10)/3
    np.testing.assert_allclose(running_mean(values, window=3), [[1, 1.5, 2, 3, 17 / 3]])


def test_the_drawn_mean_is_of_as_many_values_on_either_side() -> None:
    values = np.array([[1.0, 2.0, 6.0, 4.0, 10.0, 7.0]])
    # 1, (1+2+6)/3, (1+2+6+4+10)/5, (2+6+4+10+7)/5, (4+10+7)/3, 7
    np.testing.assert_allclose(centered_mean(values, window=5), [[1, 3, 4.6, 5.8, 7, 7]])


def test_the_drawn_mean_of_a_constant_is_that_constant() -> None:
    values = np.full((1, 220), 0.1)
    np.testing.assert_array_equal(centered_mean(values), values)


def test_the_drawn_mean_lies_on_the_curve_that_it_smooths() -> None:
    steps = np.arange(1.0, 61.0)
    # A constant slope stays itself up to both ends; so does the step at which a curve falls.
    falls = np.where(steps <= 30, 1.0, 0.0)
    arms = {
        "none": [[MetricsRow(int(step), {"aer/entropy": 0.01 * step}) for step in steps]],
        "aer": [[MetricsRow(int(step), {"aer/entropy": value}) for step, value in zip(steps, falls, strict=True)]],
    }
    raw, mean, raw_fall, mean_fall = lines_of(plot_runs(arms), 0)
    np.testing.assert_allclose(mean, raw, rtol=1e-12)
    assert steps[mean_fall < 0.5][0] == steps[raw_fall < 0.5][0] == 31


def test_one_run_is_drawn_raw_and_smoothed_with_its_target() -> None:
    figure = plot_runs(
        {
            "aer": [
                [
                    MetricsRow(1, {"aer/entropy": 0.2, "aer/target": 0.3}),
                    MetricsRow(2, {"aer/entropy": 0.6, "aer/target": 0.3}),
                    MetricsRow(3, {"aer/entropy": 0.4, "aer/target": 0.3}),
                ]
            ]
        }
    )
    raw, mean, target = lines_of(figure, 0)
    np.testing.assert_allclose(raw, [0.2, 0.6, 0.4])
    np.testing.assert_allclose(mean, [0.2, 0.4, 0.4])
    np.testing.assert_allclose(target, [0.3, 0.3, 0.3])
    assert {line.get_color() for line in figure.axes[0].lines} == {COLORS["aer"]}


def test_seeds_become_thin_lines_a_band_and_their_mean() -> None:
    # The second seed stopped at step 20: the mean is over the steps that both have.
    figure = plot_runs({"aer": [rows(0.2), rows(0.4, steps=20)]})
    first, second, mean, _target = lines_of(figure, 0)
    assert len(mean) == 20
    np.testing.assert_allclose([first[-1], second[-1], mean[-1]], [0.2, 0.4, 0.3])
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [0.2, 0.4])


def test_bucket_coefficient_is_alpha_times_weight_where_both_are_known() -> None:
    run = rows(0.2, steps=3)
    del run[1].data["aer/weight/hard"]
    figure = plot_runs({"aer": [run]})
    (hard,) = figure.axes[2].lines
    np.testing.assert_array_equal(hard.get_xdata(), [1, 3])
    np.testing.assert_allclose(hard.get_ydata(), [0.05, 0.05])


def test_a_run_without_our_metrics_still_shows_entropy_and_score() -> None:
    stock = [MetricsRow(step, {"actor/entropy": 0.5, "critic/score/mean": 0.7}) for step in (1, 2)]
    figure = plot_runs({"veRL": [stock]})
    assert [len(axes.lines) for axes in figure.axes] == [2, 0, 0, 2]
    assert figure.axes[1].texts[0].get_text() == "not in these logs"


def test_a_score_is_no_accuracy_in_a_log_of_ours() -> None:
    # A reward model's score, about which nothing says what is correct.
    run = rows(0.2)
    for row in run:
        del row.data["aer/accuracy/mean"]
    assert lines_of(plot_runs({"fixed": [run]}), 3) == []


def test_a_simulation_has_two_panels() -> None:
    plant = [MetricsRow(step, {"aer/entropy": 0.5, "aer/alpha": 0.1}) for step in (1, 2)]
    assert [len(axes.lines) for axes in plot_runs({"aer": [plant]}).axes] == [2, 2]


def test_a_logarithmic_axis_holds_collapse_and_explosion_and_no_zero() -> None:
    arms = {"none": [rows(0.01)], "fixed": [rows(20.0)], "gone": [rows(0.0)]}
    axes = plot_runs(arms, log_entropy=True).axes[0]
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert 0.005 < low < 0.01
    assert high > 20.0


def test_every_label_has_its_own_color_in_all_panels() -> None:
    figure = plot_runs({"mine": [rows(0.2)], "aer": [rows(0.3)], "other": [rows(0.4)]})
    colors = [[line.get_color() for line in axes.lines] for axes in figure.axes]
    assert set(colors[0]) == set(colors[1]) == set(colors[2]) == set(colors[3])
    assert len(set(colors[0])) == 3
    assert COLORS["aer"] in colors[0]


def test_figure_is_opaque_white_and_captioned(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "deep" / "run.png"
    figure = plot_runs({"aer": [rows(0.2)]}, command="verl-aer plot log.jsonl", title="Countdown")
    assert {"verl-aer plot log.jsonl", "Countdown"} <= {text.get_text() for text in figure.texts}
    save_figure(figure, path)
    pixels = imread(path)
    assert pixels[0, 0].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert [entry.name for entry in path.parent.iterdir()] == ["run.png"]


def test_seeds_without_a_common_step_are_refused() -> None:
    late = [MetricsRow(99, {"aer/entropy": 0.1})]
    with pytest.raises(ValueError, match="no step in common"):
        plot_runs({"aer": [rows(0.2), late]})
    with pytest.raises(ValueError, match="no metrics log"):
        plot_runs({})


def test_log_reader_merges_steps_and_drops_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "data": {"a": null}}\n{"step": 1, "data": {"a": 1.5}}\n{"step": 2, "data": {"b": 3}}\n'
        '{"step": 3, "da'
    )
    read = read_metrics_log(path)
    assert read == [MetricsRow(1, {"a": 1.5}), MetricsRow(2, {"a": None, "b": 3})]
    steps, values = series([*read, MetricsRow(4, {"a": math.nan})], "a")
    assert (steps.tolist(), values.tolist()) == ([1], [1.5])


def test_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == []
    line = json.dumps({"step": 1, "data": {"a": 1.0}})
    path.write_text(line[:10])
    assert tail.read() == []
    path.write_text(line + "\n")
    assert tail.read() == [MetricsRow(1, {"a": 1.0})]
    assert tail.read() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no complete line yet"), ("[1]\n", "line 1: expected"), ('{"step": 1, "data": {}}\nx\n', "line 2: expected")],
)
def test_log_reader_names_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(MetricsLogError, match="VERL_FILE_LOGGER_PATH"):
        read_metrics_log(path)
    path.write_text(content)
    with pytest.raises(MetricsLogError, match=message):
        read_metrics_log(path)
