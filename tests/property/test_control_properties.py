from __future__ import annotations

import contextlib
import math
import struct
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aer import ControlState, EntropyControl, StateError, parse_entropy_config
from verl_aer.control.simulation import Plant, replay, simulate
from verl_aer.control.state_file import load_run, save_state

entropies = st.lists(st.one_of(st.floats(0, 12), st.sampled_from([math.nan, math.inf, -math.inf])), max_size=30)


@st.composite
def configs(draw):
    alpha_min, alpha_init, alpha_max = sorted(draw(st.lists(st.floats(-1, 1), min_size=3, max_size=3)))
    return parse_entropy_config(
        {
            "method": draw(st.sampled_from(["aer", "aer_absolute_target"])),
            "controller": {
                "ki": draw(st.floats(0, 1)),
                "kp": draw(st.sampled_from([0.0, 0.5, 20.0])),
                "alpha_init": alpha_init,
                "alpha_min": alpha_min,
                "alpha_max": alpha_max,
                "warmup_steps": draw(st.integers(0, 5)),
                "dead_band": draw(st.floats(0, 0.5)),
                "ema": draw(st.floats(0, 0.99)),
            },
        }
    )


@given(configs(), entropies)
def test_alpha_stays_within_its_bounds_and_finite(config, observed):
    control = EntropyControl(config)
    for step, entropy in enumerate(observed, start=1):
        decision = control.observe(entropy, step)
        assert config.controller.alpha_min <= decision.next_alpha <= config.controller.alpha_max
    assert control.state.skipped_updates == sum(not math.isfinite(entropy) for entropy in observed)


@given(configs(), entropies)
def test_alpha_never_moves_away_from_the_target(config, observed):
    control = EntropyControl(config)
    for step, entropy in enumerate(observed, start=1):
        before = control.state.controller["integral"]
        decision = control.observe(entropy, step)
        moved = control.state.controller["integral"] - before
        pushed = control.alpha - control.state.controller["integral"]
        assert decision.error is not None or moved == 0
        assert moved == 0 or (moved > 0) == (decision.error > 0)
        # A skipped entropy leaves the last push as it is.
        assert decision.skipped or pushed == 0 or (pushed > 0) == (decision.error > 0)


@given(configs(), entropies)
def test_entropies_that_are_not_finite_might_as_well_not_have_been(config, observed):
    controller = config.controller.model_copy(update={"warmup_steps": 0})
    config = config.model_copy(update={"controller": controller})
    with_them, without = EntropyControl(config), EntropyControl(config)
    for step, entropy in enumerate(observed, start=1):
        with_them.observe(entropy, step)
        if math.isfinite(entropy):
            without.observe(entropy, step)
    assert with_them.alpha == without.alpha
    assert with_them.state.initial_entropy == without.state.initial_entropy
    assert with_them.state.controller == without.state.controller


@given(configs(), entropies, st.integers(0, 30))
def test_an_interrupted_run_equals_an_uninterrupted_one(config, observed, cut):
    straight, interrupted = EntropyControl(config), EntropyControl(config)
    with tempfile.TemporaryDirectory() as folder:
        for step, entropy in enumerate(observed, start=1):
            if step == cut:
                path = Path(folder) / "aer_state.json"
                save_state(path, interrupted.state, config)
                interrupted = EntropyControl(config, load_run(path, config).state)
            assert repr(straight.observe(entropy, step)) == repr(interrupted.observe(entropy, step))
    assert straight.state == interrupted.state


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.floats(0, 0.2), finite, finite, finite)
def test_a_saved_state_comes_back_bit_for_bit(alpha, initial_entropy, entropy_sum, entropy_ema):
    config = parse_entropy_config({"method": "aer"})
    remembered = {"integral": alpha, "entropy_ema": entropy_ema}
    state = ControlState(alpha, remembered, initial_entropy, entropy_sum, 3, entropy_ema, step=9, updates=4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "aer_state.json"
        save_state(path, state, config)
        loaded = load_run(path, config).state
    for name in ("alpha", "initial_entropy", "entropy_sum", "last_entropy"):
        assert struct.pack("<d", getattr(loaded, name)) == struct.pack("<d", getattr(state, name))
    for name, value in remembered.items():
        assert struct.pack("<d", loaded.controller[name]) == struct.pack("<d", value)


@settings(max_examples=200)
@given(st.data())
def test_a_state_file_with_a_changed_byte_is_refused_or_says_the_same(data):
    config = parse_entropy_config({"method": "aer"})
    remembered = {"integral": 0.0123, "entropy_ema": 0.375}
    state = ControlState(0.0123, remembered, 1.25, 1.25, 1, 0.375, step=9, updates=9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "aer_state.json"
        save_state(path, state, config)
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        # A space instead of a line break, for one, changes nothing.
        with contextlib.suppress(StateError):
            assert load_run(path, config).state == state


@given(configs(), st.integers(1, 60), st.integers(0, 5))
def test_a_replay_of_a_simulated_log_has_no_difference(config, steps, seed):
    rows = simulate(config, Plant(noise=0.05, seed=seed), steps)
    assert replay(rows, config).largest_difference == 0.0


@settings(max_examples=30)
@given(
    initial=st.floats(0.2, 3.0),
    decay=st.floats(0.03, 0.1),
    gain=st.floats(0.3, 1.0),
    shock=st.one_of(st.none(), st.floats(-3.0, 3.0)),
)
def test_the_loop_settles_on_the_target_of_any_reachable_plant(initial, decay, gain, shock):
    # The linear loop has the characteristic z^2 - (2 - decay) z + (1 - decay) + ki * gain, stable for
    # ki * gain < decay; half of that leaves it well damped. alpha_max is above decay * H* / gain.
    ki = 0.25 * decay**2 / gain
    config = parse_entropy_config({"method": "aer", "controller": {"ki": ki, "alpha_max": 1.0}})
    shocks = {} if shock is None else {500: shock}
    rows = simulate(config, Plant(initial, decay, gain), steps=2500, shocks=shocks)
    tail = np.array([row.data["aer/entropy"] for row in rows[-50:]])
    assert np.allclose(tail, 0.4 * initial, rtol=0.01)
