from __future__ import annotations

import pytest
from pydantic import ValidationError

from verl_aer.parts.controller import PI, Controller, Fixed, Observation, Output, Schedule, Sign
from verl_aer.parts.target import Bounds


def updated(controller: Controller, state: dict | float, entropy: float, target: float | None = 0.4, step: int = 1):
    """The state and the output after one step; a number is the state of a controller that begins there."""
    state = controller.init(state) if isinstance(state, float) else state
    before = dict(state)
    bounds = None if target is None else Bounds(target, target)
    result = controller.update(state, Observation(entropy, bounds, step))
    assert dict(state) == before
    return result


def alpha_after(controller: Controller, state: dict | float, *seen) -> float:
    return updated(controller, state, *seen)[1].alpha


def is_saturated(controller: Controller, state: dict | float, *seen) -> bool:
    return updated(controller, state, *seen)[1].saturated


def test_the_integral_moves_by_ki_times_the_error():
    controller = PI(ki=0.02, alpha_max=1.0)
    # 0.05 + 0.02 * (0.4 - 0.1) and 0.05 + 0.02 * (0.4 - 0.9)
    assert alpha_after(controller, 0.05, 0.1) == pytest.approx(0.056, abs=1e-15)
    assert alpha_after(controller, 0.05, 0.9) == pytest.approx(0.04, abs=1e-15)


def test_alpha_is_clipped_to_its_bounds_and_says_so():
    controller = PI(ki=0.1, alpha_init=0.01, alpha_min=0.01, alpha_max=0.05)
    state, output = updated(controller, 0.04, 0.1)
    assert (state["integral"], output) == (0.05, Output(0.05, saturated=True, entropy=0.1))
    state, output = updated(controller, 0.02, 0.9)
    assert (state["integral"], output) == (0.01, Output(0.01, saturated=True, entropy=0.9))
    assert not is_saturated(controller, 0.02, 0.4)


def test_resting_at_zero_or_arriving_at_a_bound_is_not_saturation():
    assert not is_saturated(PI(alpha_min=0.0), 0.0, 0.9)
    assert not is_saturated(PI(alpha_max=0.25), 0.25, 0.4)
    assert not is_saturated(PI(alpha_min=0.25, alpha_init=0.25, alpha_max=0.5), 0.25, 0.4)


def test_nothing_moves_inside_the_dead_band_and_its_edge_is_inside():
    controller = PI(ki=0.02, dead_band=0.125, alpha_max=1.0)
    # 0.5 - 0.375 = 0.125 exactly
    assert alpha_after(controller, 0.05, 0.375, 0.5) == 0.05
    assert alpha_after(controller, 0.05, 0.625, 0.5) == 0.05
    # Outside, the whole error counts: 0.05 + 0.02 * 0.25
    assert alpha_after(controller, 0.05, 0.25, 0.5) == pytest.approx(0.055, abs=1e-15)


def test_alpha_stays_through_the_warm_up_steps():
    controller = PI(ki=0.02, warmup_steps=3, alpha_init=0.05, alpha_max=1.0)
    assert alpha_after(controller, 0.05, 0.1, 0.4, 3) == 0.05
    assert alpha_after(controller, 0.05, 0.1, 0.4, 4) > 0.05


def test_kp_pushes_on_top_of_the_integral_but_for_warm_up_and_dead_band():
    controller = PI(ki=0.0, kp=1.0, warmup_steps=3, dead_band=0.125, alpha_max=1.0)
    assert alpha_after(controller, 0.05, 0.1, 0.4, 3) == 0.05
    assert alpha_after(controller, 0.05, 0.3, 0.4, 4) == 0.05
    assert alpha_after(controller, 0.05, 0.1, 0.4, 4) == pytest.approx(0.35, abs=1e-15)


def test_pi_by_hand_on_both_sides_of_zero():
    controller = PI(ki=0.5, kp=2.0, alpha_min=-1.0, alpha_max=1.0)
    # Too high by 0.2: I = 0 - 0.1, and the next step trains with -0.1 - 0.4.
    state, output = updated(controller, 0.0, 0.3, 0.1)
    assert state["integral"] == pytest.approx(-0.1)
    assert output == Output(pytest.approx(-0.5), saturated=False, entropy=0.3)
    # Too low and too high by 0.8: both sides of the clip.
    assert updated(controller, -0.1, 0.1, 0.9)[1] == Output(1.0, saturated=True, entropy=0.1)
    assert updated(controller, -0.1, 0.9, 0.1)[1] == Output(-1.0, saturated=True, entropy=0.9)


def test_the_running_mean_weighs_the_past_and_is_what_the_rule_sees():
    controller = PI(ki=0.1, ema=0.75, alpha_max=1.0)
    state, output = updated(controller, 0.5, 0.8)
    assert (state["entropy_ema"], output.entropy) == (0.8, 0.8)
    # 0.75 * 0.8 + 0.25 * 0.4 = 0.7; 0.46 - 0.1 * 0.3
    state, output = updated(controller, state, 0.4)
    assert state["entropy_ema"] == output.entropy == pytest.approx(0.7)
    assert output.alpha == pytest.approx(0.43, abs=1e-15)
    assert updated(PI(ema=0.0), state, 0.1)[1].entropy == 0.1


def test_the_level_of_a_band_is_the_one_that_is_nearest_to_the_running_mean():
    controller = PI(ki=1.0, ema=0.5, alpha_max=1.0)
    state = {"integral": 0.5, "entropy_ema": 0.25}
    # The mean of 0.25 and 0.75 is in the band, 0.75 is not.
    assert controller.update(state, Observation(0.75, Bounds(0.25, 0.5), 1))[1] == Output(0.5, False, 0.5)


def test_in_a_band_alpha_moves_by_the_distance_outside_it():
    controller, band = PI(ki=0.5, alpha_max=1.0), Bounds(0.25, 0.5)
    found = [controller.update(controller.init(0.5), Observation(entropy, band, 1)) for entropy in (0.125, 0.375, 0.75)]
    # 0.5 + 0.5 * (0.25 - 0.125), 0.5, 0.5 - 0.5 * (0.75 - 0.5)
    assert [output.alpha for _, output in found] == [0.5625, 0.5, 0.375]


def test_before_there_is_a_target_the_running_mean_moves_and_alpha_does_not():
    controller = PI(ki=1.0, kp=1.0, ema=0.5)
    state, output = updated(controller, {"integral": 0.1, "entropy_ema": 0.25}, 0.75, None)
    assert state == {"integral": 0.1, "entropy_ema": 0.5}
    assert output == Output(0.1, saturated=False, entropy=0.5)
    assert updated(Sign(), 0.003, 0.75, None) == ({"coefficient": 0.003}, Output(0.003))


def test_fixed_never_moves():
    controller = Fixed(coefficient=0.003)
    assert controller.initial_alpha() == 0.003
    assert updated(controller, {}, 0.0, None) == ({}, Output(0.003))


def test_sign_goes_down_at_the_target_and_is_withheld_there():
    controller = Sign(step_size=0.125, alpha_max=1.0)
    assert updated(controller, 0.5, 0.1, 0.2) == ({"coefficient": 0.625}, Output(0.625))
    assert updated(controller, 0.5, 0.2, 0.2) == ({"coefficient": 0.375}, Output(0.0))
    assert updated(Sign(step_size=0.125, alpha_max=1.0, gate=False), 0.5, 0.9, 0.2)[1] == Output(0.375)


def test_sign_stays_in_its_bounds_and_says_so():
    controller = Sign(step_size=0.125, alpha_init=0.25, alpha_min=0.25, alpha_max=0.5)
    assert updated(controller, 0.5, 0.1, 0.2) == ({"coefficient": 0.5}, Output(0.5, saturated=True))
    assert updated(controller, 0.25, 0.9, 0.2) == ({"coefficient": 0.25}, Output(0.0, saturated=True))
    assert not is_saturated(Sign(), 0.0, 0.9, 0.2)


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
    controller = Schedule(alpha_init=0.5, shape=shape, total_steps=4)
    found = [alpha_after(controller, {}, 0.3, None, step) for step in (1, 2, 3, 4, 5)]
    assert found == pytest.approx([0.5 * share for share in shares], abs=1e-5)
    assert all(controller.restore({}, alpha) == ({}, alpha) for alpha in found)


BOUNDED_PI = PI(alpha_min=-0.1, alpha_max=0.2)
BOUNDED_SIGN = Sign(alpha_init=0.25, alpha_min=0.25, alpha_max=0.5)


@pytest.mark.parametrize(
    ("controller", "saved", "restored"),
    [
        (BOUNDED_PI, ({"integral": 0.3, "entropy_ema": 0.7}, 0.5), ({"integral": 0.2, "entropy_ema": 0.7}, 0.2)),
        (BOUNDED_PI, ({"integral": -0.3, "entropy_ema": None}, -0.5), ({"integral": -0.1, "entropy_ema": None}, -0.1)),
        (BOUNDED_PI, ({"integral": 0.2, "entropy_ema": 0.7}, -0.1), ({"integral": 0.2, "entropy_ema": 0.7}, -0.1)),
        (BOUNDED_SIGN, ({"coefficient": 0.6}, 0.6), ({"coefficient": 0.5}, 0.5)),
        (BOUNDED_SIGN, ({"coefficient": 0.1}, 0.1), ({"coefficient": 0.25}, 0.25)),
        (BOUNDED_SIGN, ({"coefficient": 0.5}, 0.0), ({"coefficient": 0.5}, 0.0)),
        (BOUNDED_SIGN.model_copy(update={"gate": False}), ({"coefficient": 0.5}, 0.0), ({"coefficient": 0.5}, 0.25)),
        (Fixed(coefficient=0.003), ({}, 0.1), ({}, 0.003)),
        (Schedule(alpha_init=0.5), ({}, -0.6), ({}, -0.5)),
        (Schedule(alpha_init=0.5), ({}, 0.4), ({}, 0.4)),
    ],
)
def test_a_saved_state_is_brought_to_the_nearest_that_the_settings_allow(controller, saved, restored):
    assert controller.restore(*saved) == restored
    assert controller.restore(*restored) == restored


@pytest.mark.parametrize(
    ("controller", "settings", "fields"),
    [
        (Sign, {"step_size": -1.0}, ["step_size"]),
        (Sign, {"alpha_min": -0.1}, ["alpha_min"]),
        (Sign, {"alpha_min": 0.1, "alpha_max": 0.01}, ["alpha_max"]),
        (Sign, {"alpha_min": 0.1}, ["alpha_max"]),
        (Sign, {"alpha_init": 0.1}, ["alpha_init"]),
        (Schedule, {"alpha_init": -1.0, "shape": "sine", "total_steps": 0}, ["alpha_init", "shape", "total_steps"]),
        (PI, {"ki": -1.0, "kp": -1.0}, ["ki", "kp"]),
        (PI, {"ki": -1.0, "alpha_min": 0.1, "alpha_max": 0.0}, ["alpha_max", "ki"]),
        (PI, {"alpha_min": -0.1, "alpha_init": -0.2}, ["alpha_init"]),
        (Fixed, {"coefficient": -0.1}, ["coefficient"]),
    ],
)
def test_bounds_of_the_settings(controller, settings, fields):
    with pytest.raises(ValidationError) as caught:
        controller(**settings)
    assert [error["loc"][0] for error in caught.value.errors()] == fields
    assert controller()


def test_alpha_may_have_a_bound_below_zero():
    assert alpha_after(PI(ki=1.0, alpha_min=-1.0), 0.0, 0.9) == -0.5
