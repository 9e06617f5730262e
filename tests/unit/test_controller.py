from __future__ import annotations

import pytest

from verl_aer.parts.controller import DeadBand, Fixed, Integral, ProportionalIntegral, Schedule, SignGated


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


def test_resting_at_zero_or_arriving_at_a_bound_is_not_saturation():
    assert not Integral(minimum=0.0).saturated(0.0, entropy=0.9, target=0.4, step=1)
    assert not Integral(maximum=0.25).saturated(0.25, entropy=0.4, target=0.4, step=1)
    assert not Integral(minimum=0.25, initial=0.25, maximum=0.5).saturated(0.25, entropy=0.4, target=0.4, step=1)


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
    assert controller.applied(0.05, entropy=0.1, target=0.4, step=3) == 0.05
    assert controller.applied(0.05, entropy=0.3, target=0.4, step=4) == 0.05
    assert controller.applied(0.05, entropy=0.1, target=0.4, step=4) == pytest.approx(0.35, abs=1e-15)


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


def test_dead_band_moves_by_the_distance_outside_the_band():
    controller = DeadBand(eta=0.5, maximum=1.0)
    # The level of the band that is nearest is the target: 0.5 + 0.5 * (0.25 - 0.125), 0.5 - 0.5 * (0.75 - 0.5)
    assert controller.next_alpha(0.5, entropy=0.125, target=0.25, step=1) == 0.5625
    assert controller.next_alpha(0.5, entropy=0.375, target=0.375, step=1) == 0.5
    assert controller.next_alpha(0.5, entropy=0.75, target=0.5, step=1) == 0.375
    assert DeadBand().next_alpha(1e-5, entropy=0.9, target=0.5, step=1) == 1e-5
    assert DeadBand().saturated(1e-5, entropy=0.9, target=0.5, step=1)


def test_sign_gated_goes_down_at_the_target_and_is_withheld_there():
    controller = SignGated(delta=0.125, maximum=1.0)
    assert controller.next_alpha(0.5, entropy=0.1, target=0.2, step=1) == 0.625
    assert controller.next_alpha(0.5, entropy=0.2, target=0.2, step=1) == 0.375
    assert controller.applied(0.5, entropy=0.2, target=0.2, step=1) == 0.0
    assert controller.applied(0.5, entropy=0.1, target=0.2, step=1) == 0.5
    assert SignGated(gate=False).applied(0.5, entropy=0.9, target=0.2, step=1) == 0.5


def test_sign_gated_stays_in_its_bounds_and_says_so():
    controller = SignGated(delta=0.125, initial=0.25, minimum=0.25, maximum=0.5)
    assert controller.next_alpha(0.5, entropy=0.1, target=0.2, step=1) == 0.5
    assert controller.saturated(0.5, entropy=0.1, target=0.2, step=1)
    assert controller.next_alpha(0.25, entropy=0.9, target=0.2, step=1) == 0.25
    assert controller.saturated(0.25, entropy=0.9, target=0.2, step=1)
    assert not SignGated().saturated(0.0, entropy=0.9, target=0.2, step=1)
    assert [controller.allows(alpha) for alpha in (0.0, 0.125, 0.25, 0.5, 0.75)] == [True, False, True, True, False]
    assert not SignGated(initial=0.25, minimum=0.25, maximum=0.5, gate=False).allows(0.0)


@pytest.mark.parametrize(
    ("shape", "shares"),
    [
        # Steps 2 to 6 of a schedule of 4: x = 1/4, 1/2, 3/4, 1, 1
        ("cos_signed", [2**-0.5, 0.0, -(2**-0.5), -1.0, -1.0]),
        ("cos_half", [0.92388, 2**-0.5, 0.38268, 0.0, 0.0]),
        ("linear", [0.75, 0.5, 0.25, 0.0, 0.0]),
    ],
)
def test_a_schedule_follows_its_shape_and_rests_at_its_end(shape, shares):
    controller = Schedule(initial=0.5, shape=shape, total_steps=4)
    assert controller.initial_alpha() == 0.5
    found = [controller.next_alpha(99.0, entropy=0.3, target=None, step=step) for step in (1, 2, 3, 4, 5)]
    assert found == pytest.approx([0.5 * share for share in shares], abs=1e-5)
    assert all(controller.allows(alpha) for alpha in found)
    assert not controller.allows(0.51)


@pytest.mark.parametrize(
    ("controller", "fields"),
    [
        (SignGated(delta=-1.0), ["delta"]),
        (SignGated(minimum=0.1, maximum=0.01), ["maximum"]),
        (SignGated(initial=0.1), ["initial"]),
        (Schedule(initial=-1.0, shape="sine", total_steps=0), ["initial", "shape", "total_steps"]),
        (DeadBand(eta=-1.0), ["eta"]),
    ],
)
def test_bounds_of_the_settings(controller, fields):
    assert [name for name, _ in controller.problems()] == fields
    assert type(controller)().problems() == []


def test_proportional_and_integral_by_hand_on_both_sides_of_zero():
    controller = ProportionalIntegral(eta=0.5, damping=2.0, minimum=-1.0, maximum=1.0)
    # Too high by 0.2: I = 0 - 0.1, and the step trains with -0.1 - 0.4.
    integral = controller.next_alpha(0.0, entropy=0.3, target=0.1, step=1)
    assert integral == pytest.approx(-0.1)
    assert controller.applied(integral, 0.3, 0.1, 1) == pytest.approx(-0.5)
    # Too low by 0.8: both sides of the clip.
    assert controller.applied(integral, 0.1, 0.9, 2) == 1.0
    assert controller.saturated(integral, 0.1, 0.9, 2)
    assert controller.saturated(integral, 0.9, 0.1, 2)
    assert not controller.saturated(0.0, 0.3, 0.1, 1)
    assert controller.allows(-1.0)
    assert not controller.allows(-1.1)
