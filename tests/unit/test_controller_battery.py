"""Every controller on the synthetic plant. A new controller needs one more row.

The plant loses 5 % of its entropy per step and gains 0.15 nats per unit of alpha. Without control it collapses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from verl_aer import parse_entropy_config, part_names
from verl_aer.config.schema import EntropyConfig
from verl_aer.control.simulation import Plant, simulate

STEPS, SHOCK = 1600, 800
TARGET = 0.4
"""Nats; holding it takes alpha = 0.05 * 0.4 / 0.15 = 0.133."""


class Row(NamedTuple):
    """A controller's settings, its target, and how far from it the entropy may stay (nats)."""

    controller: dict
    target: dict
    within: float


ABSOLUTE = {"kind": "absolute", "entropy": TARGET}
BATTERY = {
    "integral": Row({"kind": "pi", "ki": 0.005, "alpha_max": 0.5}, ABSOLUTE, 0.01),
    "integral, damped": Row({"kind": "pi", "ki": 0.02, "kp": 0.5, "alpha_max": 0.5}, ABSOLUTE, 0.01),
    "integral, smoothed": Row({"kind": "pi", "ki": 0.005, "ema": 0.5, "alpha_max": 0.5}, ABSOLUTE, 0.01),
    "on both sides of 0": Row(
        {"kind": "pi", "ki": 0.01, "kp": 1.0, "alpha_min": -1.0, "alpha_max": 1.0}, ABSOLUTE, 0.01
    ),
    "in a band": Row({"kind": "pi", "ki": 0.005, "alpha_max": 0.5}, {"kind": "band", "low": 0.3, "high": 0.5}, 0.11),
    "sign": Row({"kind": "sign", "step_size": 0.001, "alpha_max": 0.5, "gate": False}, ABSOLUTE, 0.1),
    "sign, gated": Row({"kind": "sign", "step_size": 0.001, "alpha_max": 0.5}, ABSOLUTE, 0.1),
}
WITHOUT_TARGET = {"fixed", "schedule"}


def config_of(row: Row) -> EntropyConfig:
    return parse_entropy_config({"method": "aer_absolute_target", "controller": row.controller, "target": row.target})


def entropies(row: Row, shock: float) -> tuple[np.ndarray, np.ndarray]:
    rows = simulate(config_of(row), Plant(), STEPS, shocks={SHOCK: shock})
    return (
        np.array([logged.data["aer/entropy"] for logged in rows]),
        np.array([logged.data["aer/alpha"] for logged in rows]),
    )


def test_each_controller_that_steers_is_in_the_battery():
    assert {row.controller["kind"] for row in BATTERY.values()} | WITHOUT_TARGET == set(part_names("controller"))


@pytest.mark.parametrize("shock", [-0.35, 3.0], ids=["collapse", "explosion"])
@pytest.mark.parametrize("name", BATTERY)
def test_settles_recovers_and_stays_in_its_bounds(name, shock):
    row = BATTERY[name]
    entropy, alpha = entropies(row, shock)
    for end in (SHOCK - 1, STEPS):
        assert np.abs(entropy[end - 100 : end] - TARGET).max() <= row.within
    # The shock was one: it is not the noise of a loop that never settled.
    assert np.abs(entropy[SHOCK - 1] - TARGET) > 2 * row.within
    assert alpha.min() >= config_of(row).controller.alpha_min
    assert alpha.max() <= row.controller["alpha_max"]


def test_without_control_the_plant_collapses():
    rows = simulate(parse_entropy_config({"method": "none"}), Plant(), STEPS)
    assert rows[-1].data["aer/entropy"] < 1e-6
