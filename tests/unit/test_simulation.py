from __future__ import annotations

import json
import math

import numpy as np
import pytest

from verl_aer import ControlState, EntropyControl, method_names, parse_entropy_config
from verl_aer.control.metrics import MetricsRow
from verl_aer.control.simulation import (
    Plant,
    Population,
    Replay,
    ReplayError,
    ReplayStep,
    replay,
    simulate,
    simulate_population,
)
from verl_aer.reports.metrics_log import read_metrics_log

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


def test_the_multiplicative_plant_by_hand():
    plant = Plant(decay=0.1, gain=2.0, ceiling=1.0, multiplicative=True)
    # ln H - 0.1 + 2 * 0.15
    assert plant.next_entropy(0.5, alpha=0.15) == pytest.approx(0.5 * math.exp(0.2))
    assert plant.next_entropy(0.5, alpha=0.05) == pytest.approx(0.5)
    assert plant.next_entropy(0.5, alpha=1e9) == 1.0
    assert plant.hold(0.5) == plant.hold(0.1) == 0.05
    assert Plant(decay=0.1, gain=2.0).next_entropy(0.5, Plant(decay=0.1, gain=2.0).hold(0.5)) == pytest.approx(0.5)


def test_a_constant_coefficient_has_no_level_of_rest_in_the_multiplicative_plant():
    plant = Plant(decay=0.01, gain=10.0, multiplicative=True)

    def settled(coefficient: float) -> float:
        config = parse_entropy_config({"method": "fixed", "controller": {"coefficient": coefficient}})
        return entropies(simulate(config, plant, steps=1500))[-1]

    assert settled(0.0009) == pytest.approx(0.8 * math.exp(-0.001 * 1499))
    assert settled(0.002) == plant.ceiling


def test_a_population_by_hand():
    population = Population(Plant(), generalization=0.25, hard_first=0.5, hard_last=0.25, prompts=4)
    assert [int(4 - population.accuracy(step, 5).sum()) for step in (1, 2, 5)] == [2, 2, 1]
    weights = np.array([1.0, 0.5, 0.0, 0.0])
    # 0.25 * mean 0.375 reaches all, 0.75 * w_i the prompt itself.
    wanted = 0.2 * np.array([0.09375 + 0.75, 0.09375 + 0.375, 0.09375, 0.09375])
    assert population.coefficients(0.2, weights) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["generalization", "hard_first", "hard_last"])
def test_a_share_above_one_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got 1.5"):
        Population(Plant(), **{name: 1.5})


def test_prompts_that_share_every_push_are_one_plant(aer):
    rows = simulate_population(aer, Population(Plant(), generalization=1.0), steps=300)
    hard, easy = ([row.data[f"aer/entropy/{bucket}"] for row in rows] for bucket in ("hard", "easy"))
    assert hard == pytest.approx(easy)
    assert hard == pytest.approx(entropies(rows))


ADDITIVE = Plant(initial=0.45, decay=0.03, gain=1.8, noise=0.005)
MULTIPLICATIVE = Plant(initial=0.45, decay=0.012, gain=10.0, noise=0.005, multiplicative=True)
UNBOUNDED = {"mean_floor": 0.0, "entropy_ceiling": None}


def shrinking(plant: Plant, generalization: float, allocation: dict) -> list[MetricsRow]:
    """2,000 steps in which the share of hard prompts falls from a half to a twentieth."""
    config = parse_entropy_config({"method": "aer", "allocation": allocation})
    return simulate_population(config, Population(plant, generalization, prompts=40), steps=2000)


@pytest.mark.parametrize("generalization", [1.0, 0.9, 0.5, 0.0])
@pytest.mark.parametrize("plant", [ADDITIVE, MULTIPLICATIVE], ids=["additive", "multiplicative"])
def test_hard_prompts_stay_near_their_initial_level_while_the_mean_holds_its_target(plant, generalization):
    rows = shrinking(plant, generalization, {})
    assert max(row.data["aer/entropy/hard"] for row in rows) <= 1.2 * 0.45
    assert np.mean(entropies(rows)[-400:]) == pytest.approx(0.18, rel=0.05)


@pytest.mark.parametrize("plant", [ADDITIVE, MULTIPLICATIVE], ids=["additive", "multiplicative"])
def test_without_floor_and_ceiling_they_run_away_behind_the_mean(plant):
    rows = shrinking(plant, 0.5, UNBOUNDED)
    assert max(row.data["aer/entropy/hard"] for row in rows) > 3 * 0.45
    assert np.mean(entropies(rows)[-400:]) == pytest.approx(0.18, rel=0.05)


def test_floor_and_ceiling_change_nothing_while_half_of_the_prompts_are_hard(aer):
    unbounded = parse_entropy_config({"method": "aer", "allocation": UNBOUNDED})
    population = Population(ADDITIVE, generalization=0.5, hard_last=0.5)
    assert simulate_population(aer, population, steps=400) == simulate_population(unbounded, population, steps=400)


@pytest.mark.parametrize("method", method_names())
def test_every_method_runs_around_a_population_and_replays(method):
    config = parse_entropy_config({"method": method}).resolve(60)
    rows = simulate_population(config, Population(Plant(noise=0.02), generalization=0.5, prompts=8), steps=60)
    assert replay(rows, config).largest_difference == 0.0


def test_the_loop_by_hand():
    config = parse_entropy_config(
        {"method": "aer", "target": {"tau": 0.5}, "controller": {"ki": 0.1, "alpha_max": 1.0}}
    )
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
    config = parse_entropy_config(
        {"method": "aer", "controller": {"kind": "sign", "step_size": 0.001, "alpha_max": 0.2, "gate": False}}
    )
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
    assert rows[-1].data["aer/bonus_slope"] == pytest.approx(2 * 0.4, abs=1e-6)


def test_entropic_steers_through_its_advantages():
    config = parse_entropy_config({"method": "entropic", "controller": {"kp": 0.1}})
    rows = simulate(config, Plant(), steps=800)
    assert rows[-1].data["aer/entropy"] == pytest.approx(0.1, abs=1e-3)
    assert not config.has_shaping_without_alpha
    assert parse_entropy_config({"method": "steer"}).has_shaping_without_alpha


@pytest.mark.parametrize("method", method_names())
def test_a_replay_of_a_log_has_no_difference(method):
    config = parse_entropy_config({"method": method}).resolve(300)
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
    other = parse_entropy_config({"method": "aer", "controller": {"ki": 0.03}})
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
    remembered = {"integral": 0.05, "entropy_ema": 0.5}
    state = ControlState(0.05, remembered, initial_entropy=1.0, entropy_sum=1.0, entropy_count=1, step=4, updates=4)
    control = EntropyControl(aer, state)
    decision = control.observe(0.2, 5)
    row = MetricsRow(5, {"aer/alpha": decision.alpha, "aer/alpha_next": decision.next_alpha, "aer/entropy": 0.2})
    assert replay([row], aer, state).largest_difference == 0.0
