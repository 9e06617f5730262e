from __future__ import annotations

import dataclasses
import math

import pytest

from verl_aer import ControlState, EntropyControl, Output, parse_entropy_config
from verl_aer.parts.controller import PI


def control_of(state: ControlState | None = None, method: str = "aer", **node) -> EntropyControl:
    if method != "fixed":
        # The numbers below are worked out for this one, whatever the default is.
        node["controller"] = {"ki": 0.02, **node.get("controller", {})}
    return EntropyControl(parse_entropy_config({"method": method, **node}), state)


def observe_all(control: EntropyControl, entropies: list[float], first_step: int = 1) -> list[float]:
    """The alphas that each step trained with."""
    used = []
    for step, entropy in enumerate(entropies, start=first_step):
        used.append(control.alpha)
        control.observe(entropy, step)
    return used


def test_three_steps_by_hand():
    control = control_of(target={"tau": 0.5}, controller={"ki": 0.1, "alpha_max": 1.0})
    # H0 = 1.0, H* = 0.5: alpha stays clipped at 0, for 0.1 * (0.5 - 1.0) < 0.
    first = control.observe(1.0, step=1)
    assert (first.alpha, first.next_alpha, first.target, first.initial_entropy) == (0.0, 0.0, 0.5, 1.0)
    # 0 + 0.1 * (0.5 - 0.25) = 0.025
    second = control.observe(0.25, step=2)
    assert (second.alpha, second.next_alpha, second.error) == (0.0, 0.025, 0.25)
    # 0.025 + 0.1 * (0.5 - 0.625) = 0.0125
    third = control.observe(0.625, step=3)
    assert (third.alpha, third.next_alpha) == (0.025, 0.0125)
    assert control.state == ControlState(
        alpha=0.0125,
        controller={"integral": 0.0125, "entropy_ema": 0.625},
        initial_entropy=1.0,
        entropy_sum=1.875,
        entropy_count=3,
        last_entropy=0.625,
        step=3,
        updates=3,
    )


def test_kp_pushes_while_the_error_lasts_and_the_integral_continues_without_it():
    control = control_of(target={"tau": 0.5}, controller={"ki": 0.1, "kp": 2.0, "alpha_max": 0.4})
    # H* = 0.5. Integral: 0, then 0.1 * 0.125, then 0.1 * (0.125 + 0.375), then as before. Pushes: 2 * error.
    used = observe_all(control, [1.0, 0.375, 0.125, 0.5])
    assert used == pytest.approx([0.0, 0.0, 0.2625, 0.4], abs=1e-15)  # 0.05 + 0.75 is above the maximum
    assert control.alpha == control.state.controller["integral"] == pytest.approx(0.05, abs=1e-15)
    assert control.state.saturated_steps == 1
    control.observe(0.75, step=5)
    # 0.05 - 0.025 - 0.5 is below 0, which is where alpha rests; the integral keeps its own value.
    assert control.alpha == 0.0
    assert control.state.controller["integral"] == pytest.approx(0.025, abs=1e-15)


def test_aer_does_nothing_until_entropy_has_fallen_below_tau_h0():
    control = control_of(target={"tau": 0.4})
    used = observe_all(control, [2.0, 1.6, 1.2, 0.9, 0.81, 0.8])
    assert used == [0.0] * 6
    # 0.8 = 0.4 * 2.0 is the target itself: still nothing.
    assert control.alpha == 0.0
    control.observe(0.79, step=7)
    assert control.alpha > 0


@pytest.mark.guards("bug 1")
def test_alpha_driven_to_zero_rises_again_when_entropy_falls():
    remembered = {"integral": 0.01, "entropy_ema": 0.5}
    state = ControlState(0.01, remembered, initial_entropy=1.0, entropy_sum=1.0, entropy_count=1, step=5, updates=5)
    control = control_of(state, target={"tau": 0.4})
    for step in range(6, 200):
        control.observe(1.5, step)
    assert control.alpha == 0.0
    # No wind-up from 194 steps at the bound: the first step below the target lifts alpha, 0.02 * (0.4 - 0.3).
    control.observe(0.3, 200)
    assert control.alpha == pytest.approx(0.002, abs=1e-15)


def test_a_step_trains_with_the_alpha_from_before_its_own_entropy():
    calm, outlier = control_of(), control_of()
    observe_all(calm, [1.0, 0.3])
    observe_all(outlier, [1.0, 0.3])
    used_calm, used_outlier = calm.alpha, outlier.alpha
    decision_calm, decision_outlier = calm.observe(0.3, 3), outlier.observe(0.0, 3)
    assert used_calm == used_outlier == decision_calm.alpha == decision_outlier.alpha
    assert decision_calm.next_alpha != decision_outlier.next_alpha


@pytest.mark.parametrize("entropy", [math.nan, math.inf, -math.inf])
def test_an_entropy_that_is_not_finite_is_counted_and_moves_nothing(entropy):
    control = control_of(controller={"ema": 0.5})
    observe_all(control, [1.0, 0.3])
    before = control.state
    decision = control.observe(entropy, step=3)
    assert decision.skipped
    assert decision.error is None
    assert decision.next_alpha == decision.alpha == before.alpha
    assert control.state == dataclasses.replace(before, step=3, skipped_updates=1)


def test_the_anchor_waits_for_finite_entropies():
    control = control_of(target={"tau": 0.5, "anchor_steps": 2}, controller={"alpha_init": 0.05})
    assert control.observe(math.nan, 1).target is None
    assert control.observe(1.0, 2).target is None
    control.observe(math.inf, 3)
    assert control.alpha == 0.05
    # H0 = (1.0 + 0.5) / 2, H* = 0.375; this step already moves alpha: 0.05 + 0.02 * (0.375 - 0.5)
    decision = control.observe(0.5, 4)
    assert (decision.initial_entropy, decision.target) == (0.75, 0.375)
    assert decision.next_alpha == pytest.approx(0.0475, abs=1e-15)
    assert (control.state.updates, control.state.skipped_updates) == (1, 2)


def test_a_level_is_known_before_the_first_finite_entropy_and_a_place_in_a_band_is_not():
    assert control_of(method="aer_absolute_target", target={"entropy": 0.3}).observe(math.nan, 1).target == 0.3
    band = control_of(target={"kind": "band", "low": 0.25, "high": 0.5})
    assert band.observe(math.nan, 1).target is None


def test_the_anchor_is_never_measured_again():
    control = control_of(target={"anchor_steps": 2})
    observe_all(control, [1.0, 2.0, 8.0, 9.0])
    assert control.state.initial_entropy == 1.5


def test_a_known_initial_entropy_is_used_from_the_first_step():
    control = control_of(target={"tau": 0.5, "initial_entropy": 0.8})
    decision = control.observe(0.1, 1)
    assert decision.target == 0.4
    # 0.02 * (0.4 - 0.1)
    assert decision.next_alpha == pytest.approx(0.006, abs=1e-15)
    assert control.state.initial_entropy == 0.8


def test_an_absolute_target_needs_no_anchor():
    control = control_of(method="aer_absolute_target", target={"entropy": 0.3})
    decision = control.observe(0.1, 1)
    assert (decision.target, decision.initial_entropy) == (0.3, None)
    assert decision.next_alpha == pytest.approx(0.004, abs=1e-15)


def test_a_fixed_coefficient_only_counts():
    control = control_of(method="fixed", controller={"coefficient": 0.003})
    assert observe_all(control, [1.0, 0.0, math.nan, 5.0]) == [0.003] * 4
    assert control.observe(1.0, 5).target is None
    assert (control.state.updates, control.state.skipped_updates, control.state.saturated_steps) == (4, 1, 0)


def test_warm_up_holds_alpha_but_the_anchor_is_taken_at_the_first_step():
    control = control_of(target={"tau": 0.5}, controller={"alpha_init": 0.05, "warmup_steps": 2})
    # Steps 1 to 3 train with alpha_0; step 3's observation is the first to move it: 0.05 + 0.02 * (0.5 - 0.3)
    assert observe_all(control, [1.0, 0.1, 0.3, 0.3]) == pytest.approx([0.05, 0.05, 0.05, 0.054], abs=1e-15)
    assert control.state.initial_entropy == 1.0


def test_ema_smooths_what_the_rule_sees():
    control = control_of(target={"tau": 1.0}, controller={"ema": 0.5, "ki": 0.1, "alpha_max": 1.0, "alpha_init": 0.5})
    control.observe(1.0, 1)
    # smoothed: 0.5 * 1.0 + 0.5 * 0.5 = 0.75; error 0.25; 0.5 + 0.025
    decision = control.observe(0.5, 2)
    assert (decision.entropy, decision.error) == (0.5, 0.25)
    assert decision.next_alpha == pytest.approx(0.525, abs=1e-15)
    # smoothed: 0.5 * 0.75 + 0.5 * 1.0 = 0.875; error 0.125
    assert control.observe(1.0, 3).error == 0.125
    assert control.state.last_entropy == 0.875


def test_saturated_steps_are_counted():
    control = control_of(target={"tau": 1.0}, controller={"ki": 0.1, "alpha_max": 0.05})
    # H* = 1.0: 0.1 * 0.4 = 0.04 fits, 0.04 + 0.04 does not, and stays so; then entropy is above the target.
    observe_all(control, [1.0, 0.6, 0.6, 0.6, 1.1])
    assert control.state.saturated_steps == 2
    assert control.state.alpha == pytest.approx(0.04)


@pytest.mark.parametrize("step", [3, 2, 0])
@pytest.mark.guards("bug 2")
def test_a_step_is_observed_once(step):
    control = control_of()
    observe_all(control, [1.0, 0.5, 0.3])
    before = control.state
    with pytest.raises(ValueError, match="observed already"):
        control.observe(0.3, step)
    assert control.state == before


def test_steps_may_be_left_out():
    # A critic that warms up alone leaves steps without an observation.
    control = control_of()
    control.observe(1.0, step=11)
    assert control.state.step == 11
    assert control.state.initial_entropy == 1.0


def test_in_a_band_the_target_is_where_the_entropy_is():
    control = control_of(
        target={"kind": "band", "low": 0.25, "high": 0.5},
        controller={"ki": 0.5, "alpha_init": 0.5, "alpha_max": 1.0},
    )
    decisions = [control.observe(entropy, step) for step, entropy in enumerate([0.375, 0.125, 0.75, math.nan], 1)]
    assert [decision.target for decision in decisions] == [0.375, 0.25, 0.5, 0.5]
    assert [decision.error for decision in decisions] == [0.0, 0.125, -0.25, None]
    # 0.5, then + 0.5 * 0.125, then - 0.5 * 0.25; a skipped entropy moves nothing
    assert [decision.next_alpha for decision in decisions] == [0.5, 0.5625, 0.4375, 0.4375]


def test_a_gated_coefficient_is_withheld_and_not_lost():
    node = {
        "method": "aer_absolute_target",
        "target": {"entropy": 0.25},
        "controller": {"kind": "sign", "step_size": 0.5, "alpha_max": 2.0},
    }
    control = EntropyControl(parse_entropy_config(node))
    decisions = [control.observe(entropy, step) for step, entropy in enumerate([0.125, 0.125, 0.375, 0.125], 1)]
    # c: 0.5, 1.0, 0.5, 1.0; withheld where the entropy was above the target
    assert [decision.next_alpha for decision in decisions] == [0.5, 1.0, 0.0, 1.0]
    assert control.state.controller == {"coefficient": 1.0}


def test_a_controller_that_remembers_what_its_init_does_not_name_is_refused(monkeypatch):
    control = control_of()
    monkeypatch.setattr(PI, "update", lambda self, state, seen: ({**state, "moment": 0.0}, Output(0.0)))
    with pytest.raises(ValueError, match=r"'pi' changed .*'moment'.*; return the same names from init and update"):
        control.observe(1.0, 1)


GOLDEN = [
    (
        {"method": "aer"},
        [
            0.0,
            0.0,
            0.004500000000000001,
            0.004500000000000001,
            0.018500000000000003,
            0.016000000000000004,
            0.017000000000000005,
        ],
    ),
    (
        {
            "method": "aer",
            "controller": {
                "ki": 0.07,
                "kp": 0.3,
                "ema": 0.3,
                "dead_band": 0.05,
                "warmup_steps": 2,
                "alpha_init": 0.013,
                "alpha_max": 0.11,
            },
            "target": {"tau": 0.6},
        },
        [0.013, 0.013, 0.06702000000000001, 0.06702000000000001, 0.11, 0.11, 0.11],
    ),
    (
        {"method": "aent"},
        [
            0.0005,
            0.00030000000000000003,
            0.00030000000000000003,
            0.00030000000000000003,
            0.00030000000000000003,
            0.00030000000000000003,
            0.00030000000000000003,
        ],
    ),
    (
        {"method": "entropic"},
        [-0.909, -0.615, -0.2271, -0.2271, -0.037299999999999986, -0.37079999999999996, -0.30360000000000004],
    ),
    ({"method": "skywork", "target": {"entropy": 0.35}}, [0.0, 0.0, 0.0001, 0.0001, 0.0002, 0.0, 0.0]),
]
"""alphas of steps 2 to 8 for the entropies below, to the last bit: no refactoring may change them."""


@pytest.mark.parametrize(("node", "alphas"), GOLDEN)
def test_the_alphas_of_each_controller_are_what_they_were(node, alphas):
    control = EntropyControl(parse_entropy_config(node))
    entropies = [1.0, 0.7, 0.31, math.nan, 0.12, 0.45, 0.38]
    assert [control.observe(entropy, step).next_alpha for step, entropy in enumerate(entropies, start=1)] == alphas
