"""Every controller around the synthetic plant: a new one joins by one row.

The plant loses 5 % of its entropy a step and gains 0.15 nats per unit of alpha: left alone it collapses.
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
    "integral": Row({"kind": "integral", "eta": 0.005, "maximum": 0.5}, ABSOLUTE, 0.01),
    "integral, damped": Row({"kind": "integral", "eta": 0.02, "damping": 0.5, "maximum": 0.5}, ABSOLUTE, 0.01),
    "integral, smoothed": Row({"kind": "integral", "eta": 0.005, "ema": 0.5, "maximum": 0.5}, ABSOLUTE, 0.01),
    "integral, by sign": Row({"kind": "integral", "update_rule": "sign", "eta": 0.001, "maximum": 0.5}, ABSOLUTE, 0.1),
    "proportional_integral": Row({"kind": "proportional_integral", "maximum": 1.0}, ABSOLUTE, 0.01),
    "dead_band": Row(
        {"kind": "dead_band", "eta": 0.005, "maximum": 0.5}, {"kind": "band", "low": 0.3, "high": 0.5}, 0.11
    ),
    "sign_gated": Row({"kind": "sign_gated", "delta": 0.001, "maximum": 0.5}, ABSOLUTE, 0.1),
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
    assert alpha.min() >= config_of(row).controller.minimum
    assert alpha.max() <= row.controller["maximum"]


def test_without_control_the_plant_collapses():
    rows = simulate(parse_entropy_config({"method": "none"}), Plant(), STEPS)
    assert rows[-1].data["aer/entropy"] < 1e-6
