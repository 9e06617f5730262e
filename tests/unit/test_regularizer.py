from __future__ import annotations

import math

import pytest
import torch

from verl_aer import Bounds, EntropyControl, get_part, parse_entropy_config, part_names
from verl_aer.parts.regularizer import Bonus, HistoryHinge, NoRegularizer, SquaredAnchor

ENTROPY = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64)
BAND = Bounds(0.4, 2.0)


@pytest.mark.parametrize("kind", part_names("regularizer"))
def test_the_slope_is_the_derivative_of_the_value(kind):
    regularizer = get_part("regularizer", kind)(**({"total_steps": 10} if kind == "history_hinge" else {}))
    signal = regularizer.signal(0.3, BAND, step=2)
    step = 1e-6
    numerically = (regularizer.value(ENTROPY + step, signal) - regularizer.value(ENTROPY - step, signal)) / (2 * step)
    assert torch.allclose(regularizer.slope(ENTROPY, signal), numerically, atol=1e-8)


def test_a_bonus_is_the_entropy_and_no_penalty_is_nothing():
    assert torch.equal(Bonus().value(ENTROPY, {}), ENTROPY)
    assert NoRegularizer().value(ENTROPY, {}).tolist() == NoRegularizer().slope(ENTROPY, {}).tolist() == [0.0] * 4


def test_the_squares_gradient_by_hand():
    regularizer = SquaredAnchor()
    # d/dH of -(H - 0.5)^2 at 0.3 is 2 * 0.2, at 0.8 it is -2 * 0.3, on the anchor 0.
    pulls = [regularizer.signal(entropy, Bounds(0.5, 0.5), step=3)["pull"] for entropy in (0.3, 0.8, 0.5)]
    assert pulls == pytest.approx([0.4, -0.6, 0.0])
    assert regularizer.value(ENTROPY, {"pull": 0.4}).tolist() == pytest.approx((0.4 * ENTROPY).tolist())
    assert regularizer.signal(0.3, None, step=1) == regularizer.signal(None, Bounds(0.5, 0.5), step=1) == {"pull": 0.0}


def test_a_penalty_that_is_not_sent_its_numbers_fails():
    with pytest.raises(KeyError, match="pull"):
        SquaredAnchor().value(ENTROPY, {})


def test_the_hinge_by_hand():
    hinge = HistoryHinge(weight=0.1, gamma=3.0, total_steps=10)
    signal = hinge.signal(None, BAND, step=2)
    # k_mid = 5, and k = 1 in the second step: beta = 1 + exp(-3 * 1 / 5).
    weight = 0.1 * (1 + math.exp(-0.6))
    assert signal == {"weight": pytest.approx(weight), "low": 0.4, "high": 2.0}
    by_hand = [0.1 - weight * 0.3, 0.5, 1.0, 3.0 - weight * 1.0]
    assert hinge.value(ENTROPY, signal).tolist() == pytest.approx(by_hand)
    assert hinge.slope(ENTROPY, signal).tolist() == pytest.approx([1 + weight, 1.0, 1.0, 1 - weight])
    assert hinge.signal(None, None, step=1)["weight"] == 0.0


def test_the_hinges_phase_goes_from_two_to_one():
    hinge = HistoryHinge(weight=1.0, gamma=3.0, total_steps=100)
    weights = [hinge.signal(None, BAND, step)["weight"] for step in range(1, 102, 10)]
    assert weights[0] == 2.0
    assert weights[-1] == pytest.approx(1 + math.exp(-6))
    assert weights == sorted(weights, reverse=True)


def test_a_run_says_how_long_it_is():
    config = parse_entropy_config({"method": "epo"})
    with pytest.raises(ValueError, match="total_steps"):
        config.regularizer.signal(None, BAND, step=1)
    assert config.resolve(10).regularizer.total_steps == 10
    assert (
        parse_entropy_config({"method": "epo", "regularizer": {"total_steps": 7}}).resolve(10).regularizer.total_steps
        == 7
    )
    assert parse_entropy_config({"method": "ceeh_me"}).resolve(10).controller.total_steps == 10
    assert parse_entropy_config({"method": "aer"}).resolve(10) == parse_entropy_config({"method": "aer"})


def test_siren_is_drawn_to_the_first_step():
    control = EntropyControl(parse_entropy_config({"method": "siren"}))
    # In the first step nothing is known, and nothing pulls.
    assert control.signal(0.75, step=1) == {"pull": 0.0}
    control.observe(0.75, step=1)
    # In the second it is this step's entropy that counts, and not the first's.
    assert control.signal(0.5, step=2) == {"pull": 0.5}
    assert control.bonus_slope(0.5, control.signal(0.5, step=2)) == 0.5
    # Where it is not measured before the update, the one of the step before.
    assert control.signal(math.nan, step=2) == {"pull": 0.0}


def test_epos_band_follows_all_earlier_steps():
    control = EntropyControl(parse_entropy_config({"method": "epo", "target": {"kappa_low": 0.5}}).resolve(10))
    assert control.signal(1.0, step=1)["weight"] == 0.0
    for step, entropy in enumerate([1.0, 0.5, 0.6], 1):
        control.observe(entropy, step)
    # The mean of all three, not of a window: 0.7.
    signal = control.signal(0.1, step=4)
    assert (signal["low"], signal["high"]) == pytest.approx((0.35, 1.4))
