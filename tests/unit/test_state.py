from __future__ import annotations

import json
import math
import re
import struct

import pytest

from verl_aer import (
    ControlState,
    EntropyControl,
    QuestionMemory,
    RunMemory,
    StateError,
    load_run,
    load_state,
    parse_entropy_config,
    save_state,
)
from verl_aer.questions import Question
from verl_aer.state import changed_conditions

SWITCH = "To start the controller afresh, set entropy.on_missing_state=restart."


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@pytest.fixture
def config():
    return parse_entropy_config({"method": "aer", "controller": {"ema": 0.3}})


@pytest.fixture
def state():
    # 0.15 + 0.02 and 1/3 have no short decimal form; 5e-324 is the smallest float there is.
    return ControlState(
        alpha=0.15 + 0.02,
        undamped_alpha=0.1 + 0.02,
        initial_entropy=1 / 3,
        entropy_sum=1 / 3,
        entropy_count=1,
        entropy_ema=5e-324,
        step=7,
        updates=5,
        skipped_updates=2,
        saturated_steps=1,
    )


@pytest.fixture
def saved(tmp_path, state, config):
    path = tmp_path / "aer_state.json"
    save_state(path, state, config)
    return path


def test_state_comes_back_bit_for_bit(saved, state, config):
    loaded = load_state(saved, config)
    assert loaded == state
    assert bits(loaded.alpha) == bits(state.alpha)
    assert bits(loaded.initial_entropy) == bits(state.initial_entropy)
    assert bits(loaded.entropy_ema) == bits(state.entropy_ema)


def test_a_fresh_state_comes_back(tmp_path, config):
    fresh = EntropyControl(config).state
    save_state(tmp_path / "s.json", fresh, config)
    assert load_state(tmp_path / "s.json", config) == fresh


@pytest.mark.guards("bug 8")
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, config):
    entropies = [1.0, 0.7, 0.2, math.nan, 0.1, 0.05, 0.9, 0.3, 0.2, 0.35]
    straight = EntropyControl(config)
    expected = [straight.observe(entropy, step) for step, entropy in enumerate(entropies, start=1)]
    for cut in range(1, len(entropies)):
        control = EntropyControl(config)
        decisions = [control.observe(entropies[step - 1], step) for step in range(1, cut + 1)]
        path = tmp_path / f"cut_{cut}.json"
        save_state(path, control.state, config)
        resumed = EntropyControl(config, load_state(path, config))
        decisions += [resumed.observe(entropies[step - 1], step) for step in range(cut + 1, len(entropies) + 1)]
        assert repr(decisions) == repr(expected)
        assert resumed.state == straight.state


def test_other_weights_and_averages_may_be_resumed_with(saved, state):
    changed = parse_entropy_config(
        {
            "method": "aer",
            "controller": {"ema": 0.3},
            "allocation": {"rho": 0.75},
            "aggregation": "policy",
            "correctness": {"threshold": 0.0},
            "on_missing_state": "restart",
        }
    )
    assert load_state(saved, changed) == state


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"controller": {"ema": 0.3, "eta": 0.5}}, "entropy.controller"),
        ({"controller": {"ema": 0.3}, "target": {"tau": 0.5}}, "entropy.target"),
        ({"target": {"kind": "absolute"}, "controller": {"ema": 0.3}}, "entropy.target"),
    ],
)
def test_a_state_of_other_settings_is_refused(saved, node, named):
    with pytest.raises(StateError, match=f"{named} was .* and is now") as caught:
        load_state(saved, parse_entropy_config({"method": "aer", **node}))
    assert_names_file_and_switch(caught.value, saved)


def assert_names_file_and_switch(error: StateError, path) -> None:
    assert str(error).startswith(f"{path}: ")
    assert str(error).endswith(SWITCH)


def test_a_missing_file_is_refused(tmp_path, config):
    path = tmp_path / "global_step_5" / "aer_state.json"
    with pytest.raises(StateError, match="does not exist") as caught:
        load_state(path, config)
    assert_names_file_and_switch(caught.value, path)


def test_every_truncation_of_the_file_is_refused(saved, config):
    whole = saved.read_bytes()
    # The last byte is the newline after the document.
    for length in range(len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(StateError, match="truncated or damaged") as caught:
            load_state(saved, config)
    assert_names_file_and_switch(caught.value, saved)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"null", b"3", b'"text"'])
def test_a_file_of_something_else_is_refused(saved, config, content):
    saved.write_bytes(content)
    with pytest.raises(StateError) as caught:
        load_state(saved, config)
    assert_names_file_and_switch(caught.value, saved)


def changed(**state) -> dict:
    return {"state": state}


CORRUPTIONS = {
    "other format": ({"format": "something"}, "format is 'something'"),
    "newer version": ({"version": 4}, "newer than 3"),
    "older version": ({"version": 2}, "older than 3"),
    "version zero": ({"version": 0}, "version is 0"),
    "version as text": ({"version": "2"}, "version is '2'"),
    "version as bool": ({"version": True}, "version is True"),
    "unknown key": ({"extra": 1}, r"unknown keys \['extra'\]"),
    "unknown key in the state": (changed(momentum=0.0), r"unknown keys \['momentum'\]"),
    "state of another type": ({"state": [1, 2]}, "its state holds list"),
    "config of another type": ({"config": None}, "its config holds NoneType"),
    "alpha as text": (changed(alpha="0.1"), "alpha='0.1'"),
    "alpha as whole number": (changed(alpha=0), "alpha=0, which is not of type float"),
    "alpha as null": (changed(alpha=None), "alpha=None"),
    "alpha NaN": (changed(alpha=math.nan), "alpha=nan, which is not finite"),
    "alpha infinite": (changed(alpha=math.inf), "alpha=inf, which is not finite"),
    "alpha negative": (changed(alpha=-1e-9), "alpha=-1e-09, which the controller"),
    "alpha above its bound": (changed(alpha=0.5, saturated_steps=0), "alpha=0.5, which the controller"),
    "initial_entropy NaN": (changed(initial_entropy=math.nan), "initial_entropy=nan"),
    "initial_entropy lost": (changed(initial_entropy=None), "lacks initial_entropy"),
    "entropy_ema infinite": (changed(entropy_ema=-math.inf), "entropy_ema=-inf"),
    "entropy_ema lost": (changed(entropy_ema=None), "lacks entropy_ema"),
    "entropy_sum null": (changed(entropy_sum=None), "entropy_sum=None"),
    "entropy_count negative": (changed(entropy_count=-1), "entropy_count=-1"),
    "step fractional": (changed(step=7.0), "step=7.0, which is not of type int"),
    "step as bool": (changed(step=True), "step=True"),
    "step negative": (changed(step=-1), "step=-1"),
    "updates beyond steps": (changed(updates=6), "more updates than steps"),
    "skipped_updates negative": (changed(skipped_updates=-1), "skipped_updates=-1"),
    "one digit of alpha": (changed(alpha=0.16), "do not match their sha256"),
    "one digit of the initial entropy": (changed(initial_entropy=0.34), "do not match their sha256"),
    "one step": (changed(step=8), "do not match their sha256"),
    "saturated beyond updates": (changed(saturated_steps=6), "more saturated steps than updates"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_refused(tmp_path, state, config, name):
    changes, message = CORRUPTIONS[name]
    path = tmp_path / "aer_state.json"
    save_state(path, state, config)
    document = json.loads(path.read_text())
    for key, value in changes.items():
        document[key] = {**document[key], **value} if key == "state" and isinstance(value, dict) else value
    path.write_text(json.dumps(document))
    with pytest.raises(StateError, match=message) as caught:
        load_state(path, config)
    assert_names_file_and_switch(caught.value, path)


@pytest.mark.parametrize("key", ["format", "version", "config", "state", "conditions", "sha256"])
def test_a_lost_key_is_refused(saved, config, key):
    document = json.loads(saved.read_text())
    del document[key]
    saved.write_text(json.dumps(document))
    with pytest.raises(StateError, match=rf"lacks the keys \['{key}'\]"):
        load_state(saved, config)


@pytest.mark.parametrize("key", list(vars(ControlState(alpha=0.0, undamped_alpha=0.0))))
def test_a_lost_state_key_is_refused(saved, config, key):
    document = json.loads(saved.read_text())
    del document["state"][key]
    saved.write_text(json.dumps(document))
    with pytest.raises(StateError, match=rf"lacks the keys \['{key}'\]"):
        load_state(saved, config)


def test_an_interrupted_write_leaves_the_file_that_was_there(saved, config, state, monkeypatch):
    before = saved.read_bytes()

    def crash(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="disk full"):
        save_state(saved, ControlState(alpha=0.1, undamped_alpha=0.1), config)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_state_that_is_not_finite_is_never_written(tmp_path, config):
    with pytest.raises(ValueError, match="JSON"):
        save_state(tmp_path / "s.json", ControlState(alpha=math.nan, undamped_alpha=0.0), config)
    assert list(tmp_path.iterdir()) == []


def test_changed_conditions_are_named_and_do_not_refuse_the_state(tmp_path, state, config):
    path = tmp_path / "s.json"
    save_state(path, state, config, {"temperature": 1.0, "length": 8, "gone": 1})
    assert load_state(path, config) == state
    assert changed_conditions(path, {"temperature": 0.7, "length": 8, "new": [2]}) == [
        "gone was 1 and is now None",
        "new was None and is now [2]",
        "temperature was 1.0 and is now 0.7",
    ]


def test_conditions_cannot_be_changed_in_the_file(tmp_path, state, config):
    path = tmp_path / "s.json"
    save_state(path, state, config, {"temperature": 1.0})
    path.write_text(path.read_text().replace('"temperature": 1.0', '"temperature": 0.7'))
    with pytest.raises(StateError, match="do not match their sha256"):
        load_state(path, config)


def test_the_runs_memory_comes_back(tmp_path, state, config):
    questions = QuestionMemory({"x": Question(1 / 3, 20, 7), "ü": Question(0.0, None, 3)})
    memory = RunMemory(questions, {"threshold": 0.1 + 0.2})
    save_state(tmp_path / "s.json", state, config, memory=memory)
    assert load_run(tmp_path / "s.json", config) == (state, memory)
    assert load_state(tmp_path / "s.json", config) == state


BAD_MEMORY = {
    "no questions": ({"reward_shaping": {}}, "questions"),
    "questions in a list": ({"questions": [], "reward_shaping": {}}, "memory.questions holds list"),
    "shaping in a number": ({"questions": {}, "reward_shaping": 1.0}, "memory.reward_shaping holds float"),
    "short question": ({"questions": {"x": [0.5, 3]}, "reward_shaping": {}}, "'x'"),
    "accuracy above 1": ({"questions": {"x": [1.5, 3, 1]}, "reward_shaping": {}}, "accuracy=1.5"),
    "accuracy as text": ({"questions": {"x": ["1", 3, 1]}, "reward_shaping": {}}, "questions.x.accuracy='1'"),
    "shortest in parts": ({"questions": {"x": [1.0, 2.5, 1]}, "reward_shaping": {}}, "questions.x.shortest=2.5"),
    "step missing": ({"questions": {"x": [1.0, 2, None]}, "reward_shaping": {}}, "questions.x.step=None"),
    "shaping as text": ({"questions": {}, "reward_shaping": {"gain": "1"}}, "reward_shaping.gain='1'"),
    "another accuracy": ({"questions": {"x": [0.25, 3, 1]}, "reward_shaping": {}}, "sha256"),
}


@pytest.mark.parametrize("name", BAD_MEMORY)
def test_a_damaged_memory_is_refused(saved, config, name):
    memory, complaint = BAD_MEMORY[name]
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "memory": memory}))
    with pytest.raises(StateError, match=re.escape(complaint)):
        load_state(saved, config)
