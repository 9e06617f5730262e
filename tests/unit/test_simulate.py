from __future__ import annotations

import json
import math

import pytest

from verl_aer import ControlState, EntropyControl, method_names, parse_entropy_config
from verl_aer.metrics_log import MetricsRow, read_metrics_log
from verl_aer.simulate import Plant, Replay, ReplayError, ReplayStep, replay, simulate

TARGET = 0.4 * 0.8
"""H* of AER's tau around the default plant's initial entropy, nats."""


@pytest.fixture
def aer():
    return parse_entropy_config({"method": "aer"})


def entropies(rows: list[MetricsRow]) -> list[float]:
    return [row.data["aer/entropy"] for row in rows]


def alphas(rows: list[MetricsRow]) -> list[float]:
    return [row.data["aer/alpha"] for row in rows]


def test_the_plant_by_hand():
    plant = Plant(decay=0.1, gain=2.0, ceiling=1.0)
    # 0.5 - 0.05 + 2 * 0.1
    assert plant.next_entropy(0.5, alpha=0.1) == pytest.approx(0.65)
    assert plant.next_entropy(0.9, alpha=1.0) == 1.0
    assert Plant(decay=2.0).next_entropy(0.5, alpha=0.0) == 0.0


def test_the_loop_by_hand():
    config = parse_entropy_config({"method": "aer", "target": {"tau": 0.5}, "controller": {"eta": 0.1, "maximum": 1.0}})
    rows = simulate(config, Plant(initial=1.0, decay=0.5, gain=1.0), steps=5)
    # H: 1, 0.5, 0.25, 0.125 + alpha_3 ...; alpha_4 = 0.1 * (0.5 - 0.25) = 0.025 is first trained with in step 4.
    assert entropies(rows) == pytest.approx([1.0, 0.5, 0.25, 0.125, 0.0875])
    assert alphas(rows) == pytest.approx([0.0, 0.0, 0.0, 0.025, 0.0625])


def test_constant_coefficients_collapse_or_explode_where_aer_holds_the_target(aer):
    def settled(config) -> float:
        return entropies(simulate(config, Plant(), steps=600))[-1]

    small = parse_entropy_config({"method": "fixed", "controller": {"coefficient": 0.001}})
    large = parse_entropy_config({"method": "fixed", "controller": {"coefficient": 1.0}})
    # A constant settles at gain * alpha / decay = 3 * alpha.
    assert settled(small) == pytest.approx(0.003, rel=1e-3)
    assert settled(large) == pytest.approx(3.0, rel=1e-3)
    assert settled(aer) == pytest.approx(TARGET, rel=1e-3)


def test_alpha_settles_where_the_plant_needs_it(aer):
    # decay * H* / gain
    assert alphas(simulate(aer, Plant(), steps=600))[-1] == pytest.approx(0.05 * TARGET / 0.15, rel=1e-3)


@pytest.mark.parametrize("shock", [-0.32, -0.2, 0.5, 3.0])
def test_the_loop_recovers_from_collapse_and_from_explosion(aer, shock):
    rows = simulate(aer, Plant(), steps=900, shocks={400: shock})
    assert abs(entropies(rows)[399] - TARGET) > 0.15
    assert entropies(rows)[-1] == pytest.approx(TARGET, rel=1e-3)


def test_the_sign_rule_ends_in_a_small_cycle_around_the_target():
    config = parse_entropy_config({"method": "aer", "controller": {"update_rule": "sign", "eta": 0.001}})
    tail = entropies(simulate(config, Plant(), steps=900))[-200:]
    assert max(abs(entropy - TARGET) for entropy in tail) < 0.1 * TARGET
    assert len({row > TARGET for row in tail}) == 2


def test_measurement_noise_does_not_move_the_mean(aer):
    rows = simulate(aer, Plant(noise=0.05, seed=1), steps=3000)
    anchored = rows[0].data["aer/target"]
    tail = entropies(rows)[1000:]
    # 2000 draws of 0.05: the mean's standard error is 0.0011 nats, and the loop itself pulls it to the target.
    assert sum(tail) / len(tail) == pytest.approx(anchored, abs=0.005)


def test_aer_stays_out_until_entropy_has_fallen_below_the_target(aer):
    rows = simulate(aer, Plant(), steps=60)
    # Untouched, entropy falls by 5 % a step: 0.8 * 0.95^17 = 0.334, 0.95^18 = 0.318 is the first below 0.32.
    below = next(row.step for row in rows if row.data["aer/entropy"] < TARGET)
    assert below == 19
    assert alphas(rows)[:below] == [0.0] * below
    assert all(alpha > 0 for alpha in alphas(rows)[below : below + 10])


def test_siren_settles_where_its_pull_equals_the_loss():
    config = parse_entropy_config({"method": "siren", "controller": {"coefficient": 0.05}})
    rows = simulate(config, Plant(gain=0.5), steps=400)
    # decay * H = gain * beta * 2 * (H0 - H): H = 0.05 * 0.8 / (0.05 + 0.05).
    assert rows[-1].data["aer/entropy"] == pytest.approx(0.4, abs=1e-6)
    assert rows[-1].data["aer/push"] == pytest.approx(2 * 0.4, abs=1e-6)


def test_entropic_steers_through_its_advantages():
    config = parse_entropy_config({"method": "entropic", "controller": {"damping": 0.1}})
    rows = simulate(config, Plant(), steps=800)
    assert rows[-1].data["aer/entropy"] == pytest.approx(0.1, abs=1e-3)
    assert not config.acts_beside_alpha
    assert parse_entropy_config({"method": "arm"}).acts_beside_alpha


@pytest.mark.parametrize("method", method_names())
def test_a_replay_of_a_log_has_no_difference(method):
    config = parse_entropy_config({"method": method}).over(300)
    result = replay(simulate(config, Plant(noise=0.02), steps=300), config)
    assert result.largest_difference == 0.0
    # Every step, and the one after the last.
    assert [step.step for step in result.steps] == list(range(1, 302))


def test_a_replay_through_the_file_that_verl_writes(aer, tmp_path):
    control = EntropyControl(aer)
    rows = simulate(aer, Plant(noise=0.02), steps=40)
    assert control.state.step == 0
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": 0, "data": {"val/acc": 0.1}})]
    lines += [json.dumps({"step": row.step, "data": {**row.data, "actor/lr": 1e-6}}) for row in rows]
    log.write_text("\n".join(lines) + "\n")
    assert replay(read_metrics_log(log), aer).largest_difference == 0.0


def test_a_skipped_entropy_is_replayed_as_skipped(aer):
    control = EntropyControl(aer)
    rows = []
    for step, entropy in enumerate([1.0, 0.3, math.nan, 0.2], start=1):
        decision = control.observe(entropy, step)
        # The file logger writes a NaN as null.
        logged = None if math.isnan(entropy) else entropy
        counts = {"aer/updates": control.state.updates, "aer/skipped_updates": control.state.skipped_updates}
        data = {"aer/alpha": decision.alpha, "aer/alpha_next": decision.next_alpha, "aer/entropy": logged, **counts}
        rows.append(MetricsRow(step, data))
    assert replay(rows, aer).largest_difference == 0.0


def test_a_step_without_an_actor_update_is_passed_over(aer):
    warm_up = [MetricsRow(step, {"aer/alpha": 0.0, "aer/alpha_next": 0.0}) for step in (1, 2)]
    rows = [MetricsRow(row.step + 2, row.data) for row in simulate(aer, Plant(), steps=40)]
    assert replay(warm_up + rows, aer).largest_difference == 0.0


def test_a_replay_finds_the_alpha_that_differs(aer):
    rows = simulate(aer, Plant(), steps=60)
    rows[49].data["aer/alpha"] += 0.004
    result = replay(rows, aer)
    assert result.largest_difference == pytest.approx(0.004)
    assert [step.step for step in result.steps if step.logged != step.recomputed] == [50]


def test_a_replay_checks_the_last_update_too(aer):
    rows = simulate(aer, Plant(), steps=60)
    rows[-1].data["aer/alpha_next"] += 0.004
    assert replay(rows, aer).largest_difference == pytest.approx(0.004)


def test_a_replay_under_other_settings_differs(aer):
    other = parse_entropy_config({"method": "aer", "controller": {"eta": 0.03}})
    assert replay(simulate(aer, Plant(), steps=60), other).largest_difference > 1e-3


def test_a_log_from_the_middle_of_a_run_needs_the_state_it_resumed_from(aer):
    rows = simulate(aer, Plant(), steps=60)
    control = EntropyControl(aer)
    for row in rows[:30]:
        control.observe(row.data["aer/entropy"], row.step)
    with pytest.raises(ReplayError, match="begins at step 31, after 30 earlier updates"):
        replay(rows[30:], aer)
    assert replay(rows[30:], aer, control.state).largest_difference == 0.0


def test_a_log_without_alpha_cannot_be_replayed(aer):
    with pytest.raises(ReplayError, match="no aer/alpha"):
        replay([MetricsRow(1, {"actor/lr": 1e-6})], aer)


def test_a_logged_alpha_that_is_no_number_is_no_agreement():
    result = Replay([ReplayStep(1, 0.1, 0.1), ReplayStep(2, math.nan, 0.1), ReplayStep(3, 0.1, 0.1)])
    assert math.isnan(result.largest_difference)


def test_a_replay_starts_from_the_given_state(aer):
    state = ControlState(
        alpha=0.05, undamped_alpha=0.05, initial_entropy=1.0, entropy_sum=1.0, entropy_count=1, step=4, updates=4
    )
    control = EntropyControl(aer, state)
    decision = control.observe(0.2, 5)
    row = MetricsRow(5, {"aer/alpha": decision.alpha, "aer/alpha_next": decision.next_alpha, "aer/entropy": 0.2})
    assert replay([row], aer, state).largest_difference == 0.0
