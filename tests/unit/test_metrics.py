from __future__ import annotations

import math

import pytest

from verl_aer import EntropyControl, parse_entropy_config
from verl_aer.control.metrics import METRICS, decision_metrics, markdown_table
from verl_aer.rollouts.groups import DIFFICULTIES

NAMES = [metric.name for metric in METRICS]


@pytest.mark.guards("T13")
def test_no_name_holds_a_word_that_verl_reduces_by():
    # What veRL 0.9.1 looks for in a metric's name to choose its reduction.
    words = ("max", "min", "sum", "total")
    # veRL's own names below timing_s/ hold one: the driver writes them and reduces nothing.
    reduced = [name for name in NAMES if not name.startswith("timing_s/")]
    assert [(name, word) for name in reduced for word in words if word in name.lower()] == []


def test_names_are_distinct_and_ours():
    assert len(NAMES) == len(set(NAMES)) == 32
    assert all(name.startswith(("aer/", "actor/aer/", "timing_s/")) for name in NAMES)
    assert {f"aer/{what}/{bucket}" for what in ("weight", "entropy") for bucket in DIFFICULTIES} <= set(NAMES)


def test_every_metric_says_its_unit_formula_and_reading():
    assert all(metric.unit and metric.formula and metric.interpretation for metric in METRICS)


def test_the_table_has_one_row_of_four_cells_for_each_metric():
    header, rule, *rows = markdown_table().splitlines()
    assert header == "| metric | unit | formula | interpretation |"
    assert len(rows) == len(METRICS)
    # A bar inside a cell would make a fifth one.
    assert {row.count("|") for row in [rule, *rows]} == {5}


def test_the_metrics_of_a_decision_are_in_the_contract_and_its_values():
    node = {"method": "aer", "target": {"tau": 0.5}, "controller": {"ki": 0.02}}
    control = EntropyControl(parse_entropy_config(node))
    control.observe(1.0, 1)
    decision = control.observe(0.25, 2)
    metrics = decision_metrics(decision, control.state)
    assert set(metrics) <= set(NAMES)
    # H* = 0.5, error 0.25, alpha 0.02 * 0.25
    assert metrics == {
        "aer/alpha": 0.0,
        "aer/alpha_next": 0.005,
        "aer/entropy": 0.25,
        "aer/target": 0.5,
        "aer/initial_entropy": 1.0,
        "aer/error": 0.25,
        "aer/saturated": 0.0,
        "aer/saturated_steps": 0,
        "aer/skipped_updates": 0,
        "aer/updates": 2,
    }


def test_what_does_not_exist_is_absent_not_zero():
    control = EntropyControl(parse_entropy_config({"method": "fixed"}))
    metrics = decision_metrics(control.observe(1.0, 1), control.state)
    assert not {"aer/target", "aer/initial_entropy", "aer/error"} & set(metrics)


def test_a_skipped_entropy_is_logged_as_it_was_seen():
    control = EntropyControl(parse_entropy_config({"method": "aer"}))
    metrics = decision_metrics(control.observe(math.nan, 1), control.state)
    assert math.isnan(metrics["aer/entropy"])
    assert metrics["aer/skipped_updates"] == 1


def test_a_step_without_an_actor_update_reports_alpha_alone():
    control = EntropyControl(parse_entropy_config({"method": "fixed"}))
    assert decision_metrics(None, control.state) == {"aer/alpha": 0.01, "aer/alpha_next": 0.01}
