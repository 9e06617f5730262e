from __future__ import annotations

import pytest

from verl_aer.controller import Fixed, Integral


def test_proportional_moves_by_eta_times_the_error():
    controller = Integral(eta=0.02, maximum=1.0)
    # 0.05 + 0.02 * (0.4 - 0.1) and 0.05 + 0.02 * (0.4 - 0.9)
    assert controller.next_alpha(0.05, entropy=0.1, target=0.4, step=3) == pytest.approx(0.056, abs=1e-15)
    assert controller.next_alpha(0.05, entropy=0.9, target=0.4, step=3) == pytest.approx(0.04, abs=1e-15)


def test_sign_moves_by_eta_whatever_the_size_of_the_error():
    controller = Integral(update_rule="sign", eta=0.001, maximum=1.0)
    assert controller.next_alpha(0.05, entropy=0.399, target=0.4, step=3) == 0.05 + 0.001
    assert controller.next_alpha(0.05, entropy=5.0, target=0.4, step=3) == 0.05 - 0.001
    assert controller.next_alpha(0.05, entropy=0.4, target=0.4, step=3) == 0.05


def test_alpha_is_clipped_to_its_bounds_and_says_so():
    controller = Integral(eta=0.1, initial=0.01, minimum=0.01, maximum=0.05)
    assert controller.next_alpha(0.04, entropy=0.1, target=0.4, step=1) == 0.05
    assert controller.saturated(0.04, entropy=0.1, target=0.4, step=1)
    assert controller.next_alpha(0.02, entropy=0.9, target=0.4, step=1) == 0.01
    assert controller.saturated(0.02, entropy=0.9, target=0.4, step=1)
    assert not controller.saturated(0.02, entropy=0.4, target=0.4, step=1)


def test_resting_at_zero_is_not_saturation():
    assert not Integral(minimum=0.0).saturated(0.0, entropy=0.9, target=0.4, step=1)


def test_nothing_moves_inside_the_dead_band_and_its_edge_is_inside():
    controller = Integral(eta=0.02, dead_band=0.125, maximum=1.0)
    # 0.5 - 0.375 = 0.125 exactly
    assert controller.next_alpha(0.05, entropy=0.375, target=0.5, step=1) == 0.05
    assert controller.next_alpha(0.05, entropy=0.625, target=0.5, step=1) == 0.05
    # Outside, the whole error counts: 0.05 + 0.02 * 0.25
    assert controller.next_alpha(0.05, entropy=0.25, target=0.5, step=1) == pytest.approx(0.055, abs=1e-15)


def test_alpha_stays_through_the_warm_up_steps():
    controller = Integral(eta=0.02, warmup_steps=3, initial=0.05, maximum=1.0)
    assert controller.next_alpha(0.05, entropy=0.1, target=0.4, step=3) == 0.05
    assert controller.next_alpha(0.05, entropy=0.1, target=0.4, step=4) > 0.05


def test_neither_warm_up_nor_dead_band_is_damped():
    controller = Integral(damping=1.0, warmup_steps=3, dead_band=0.125, maximum=1.0)
    assert controller.damped(0.05, entropy=0.1, target=0.4, step=3) == 0.05
    assert controller.damped(0.05, entropy=0.3, target=0.4, step=4) == 0.05
    assert controller.damped(0.05, entropy=0.1, target=0.4, step=4) == pytest.approx(0.35, abs=1e-15)


def test_ema_weighs_the_past():
    controller = Integral(ema=0.75)
    assert controller.smooth(None, 0.8) == 0.8
    # 0.75 * 0.8 + 0.25 * 0.4
    assert controller.smooth(0.8, 0.4) == pytest.approx(0.7)
    assert Integral(ema=0.0).smooth(0.8, 0.4) == 0.4


def test_fixed_never_moves():
    controller = Fixed(coefficient=0.003)
    assert controller.initial_alpha() == 0.003
    assert controller.next_alpha(0.003, entropy=0.0, target=None, step=9) == 0.003
    assert not controller.saturated(0.003, entropy=0.0, target=None, step=9)
