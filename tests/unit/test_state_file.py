from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from verl_aer import ControlState, EntropyControl, StateError, parse_entropy_config, to_mapping
from verl_aer.control.state_file import RunMemory, changed_conditions, load_run, save_state
from verl_aer.rollouts.question_memory import Question, QuestionMemory

SWITCH = "To restart the controller, set entropy.on_missing_state=restart."


FILES = Path(__file__).parent / "state_files"
"""State files as released code wrote them, by version; never to be written again."""


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    """Change the document and give it the digest of version 4, as another release would have written it."""
    document = json.loads(path.read_text())
    change(document)
    parts = [document[part] for part in ("config", "state", "memory", "conditions")]
    document["sha256"] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(document))


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
        controller={"integral": 0.1 + 0.02, "entropy_ema": 5e-324},
        initial_entropy=1 / 3,
        entropy_sum=1 / 3,
        entropy_count=1,
        last_entropy=5e-324,
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
    loaded = load_run(saved, config).state
    assert loaded == state
    assert bits(loaded.alpha) == bits(state.alpha)
    assert bits(loaded.initial_entropy) == bits(state.initial_entropy)
    assert bits(loaded.last_entropy) == bits(state.last_entropy)
    assert bits(loaded.controller["integral"]) == bits(state.controller["integral"])
    assert bits(loaded.controller["entropy_ema"]) == bits(state.controller["entropy_ema"])


def test_a_fresh_state_comes_back(tmp_path, config):
    fresh = EntropyControl(config).state
    save_state(tmp_path / "s.json", fresh, config)
    assert load_run(tmp_path / "s.json", config).state == fresh


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
        resumed = EntropyControl(config, load_run(path, config).state)
        decisions += [resumed.observe(entropies[step - 1], step) for step in range(cut + 1, len(entropies) + 1)]
        assert repr(decisions) == repr(expected)
        assert resumed.state == straight.state


def test_other_weights_and_averages_may_be_resumed_with(saved, state):
    changed = parse_entropy_config(
        {
            "method": "aer",
            "controller": {"ema": 0.3},
            "allocation": {"rho": 0.75},
            "aggregation": "same_as_policy_loss",
            "correctness": {"threshold": 0.0},
            "on_missing_state": "restart",
        }
    )
    assert load_run(saved, changed).state == state


def test_unchanged_settings_change_nothing(saved, config):
    assert load_run(saved, config).changes == []


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"measure": {"kind": "clamped"}}, "entropy.measure was {'kind': 'full'} and is now {'kind': 'clamped'"),
        (
            {"token_selection": {"kind": "turns"}},
            "entropy.token_selection was {'kind': 'all'} and is now {'kind': 'turns'}",
        ),
        (
            {"aggregation": "seq-mean-token-mean"},
            "entropy.aggregation was 'token-mean' and is now 'seq-mean-token-mean'",
        ),
        ({"target": {"kind": "absolute"}}, "entropy.target was {'kind': 'anchored'"),
    ],
)
def test_a_state_whose_h0_means_another_entropy_is_refused(saved, node, named):
    with pytest.raises(StateError, match=re.escape(named)) as caught:
        load_run(saved, parse_entropy_config({"method": "aer", "controller": {"ema": 0.3}, **node}))
    assert_names_file_and_switch(caught.value, saved)


def test_an_unanchored_run_does_not_become_an_anchored_one(tmp_path, state):
    path = tmp_path / "aer_state.json"
    save_state(path, state, parse_entropy_config({"method": "aer_absolute_target"}))
    with pytest.raises(StateError, match=r"entropy\.target was"):
        load_run(path, parse_entropy_config({"method": "aer"}))


def test_clamping_by_another_share_measures_another_entropy(tmp_path, state):
    path = tmp_path / "aer_state.json"
    save_state(path, state, parse_entropy_config({"method": "aer", "measure": {"kind": "clamped", "p": 0.2}}))
    with pytest.raises(StateError, match=r"'p': 0.2} and is now .*'p': 0.3}"):
        load_run(path, parse_entropy_config({"method": "aer", "measure": {"kind": "clamped", "p": 0.3}}))


CHANGES = {
    "ki": ({"controller": {"ema": 0.3, "ki": 0.5}}, {}, ["entropy.controller.ki was 0.05 and is now 0.5"]),
    "tau": (
        {"controller": {"ema": 0.3}, "target": {"tau": 0.5}},
        {},
        ["entropy.target.tau was 0.4 and is now 0.5"],
    ),
    "alpha_max": (
        {"controller": {"ema": 0.3, "alpha_max": 0.1}},
        {"alpha": 0.1, "controller": {"integral": 0.1, "entropy_ema": 5e-324}},
        [
            "entropy.controller.alpha_max was 0.2 and is now 0.1",
            "alpha was 0.16999999999999998 and is now 0.1, the nearest that the controller 'pi' allows",
        ],
    ),
    "alpha_min": (
        {"controller": {"ema": 0.3, "alpha_init": 0.15, "alpha_min": 0.15}},
        {"controller": {"integral": 0.15, "entropy_ema": 5e-324}},
        [
            "entropy.controller.alpha_min was 0.0 and is now 0.15",
            "entropy.controller.alpha_init was 0.0 and is now 0.15",
        ],
    ),
    "another kind within its bounds": (
        {"controller": {"kind": "sign", "alpha_max": 0.5}},
        {"controller": {"coefficient": 0.15 + 0.02}},
        [
            "entropy.controller was {'kind': 'pi', 'alpha_min': 0.0, ",
            "what the controller 'pi' remembered is lost: 'sign' starts from alpha",
        ],
    ),
    "another kind with tighter bounds": (
        {"controller": {"kind": "sign"}},
        {"alpha": 0.005, "controller": {"coefficient": 0.005}},
        [
            "entropy.controller was {",
            "what the controller 'pi' remembered is lost",
            "alpha was 0.16999999999999998 and is now 0.005, the nearest",
        ],
    ),
    "a given H0": (
        {"controller": {"ema": 0.3}, "target": {"initial_entropy": 0.5}},
        {"initial_entropy": 0.5},
        [
            "entropy.target.initial_entropy was None and is now 0.5",
            "H0 was 0.3333333333333333 and is now 0.5, as entropy.target.initial_entropy says",
        ],
    ),
    "another allocation": (
        {"controller": {"ema": 0.3}, "allocation": {"kind": "uniform"}},
        {},
        ["entropy.allocation was {'kind': 'difficulty'"],
    ),
    "a given H0 after the first steps": (
        {"controller": {"ema": 0.3}, "target": {"anchor_steps": 9}},
        {},
        ["entropy.target.anchor_steps was 1 and is now 9"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_settings_are_named_and_the_state_survives(tmp_path, state, config, name):
    node, moved, sentences = CHANGES[name]
    path, memory = tmp_path / "s.json", RunMemory(QuestionMemory({"x": Question(0.5, 20, 7)}))
    save_state(path, state, config, memory=memory)
    loaded = load_run(path, parse_entropy_config({"method": "aer", **node}))
    assert loaded.state == replace(state, **moved)
    assert loaded.memory == memory
    assert len(loaded.changes) == len(sentences)
    assert all(found.startswith(wanted) for found, wanted in zip(loaded.changes, sentences, strict=True))


def test_a_changed_coefficient_is_what_the_next_step_trains_with(tmp_path):
    node = {"method": "fixed", "controller": {"coefficient": 0.02}}
    fixed = EntropyControl(parse_entropy_config(node))
    fixed.observe(0.5, 1)
    save_state(tmp_path / "s.json", fixed.state, parse_entropy_config(node))
    node["controller"] = {"coefficient": 0.03}
    loaded = load_run(tmp_path / "s.json", parse_entropy_config(node)).state
    assert (loaded.alpha, loaded.controller, loaded.step) == (0.03, {}, 1)


def test_a_fixed_coefficient_may_be_saved_before_h0_is_known(tmp_path):
    config = parse_entropy_config({"method": "siren", "target": {"anchor_steps": 3}})
    control = EntropyControl(config)
    control.observe(0.5, 1)
    save_state(tmp_path / "s.json", control.state, config)
    assert load_run(tmp_path / "s.json", config).state == control.state
    assert control.state.updates == 1
    assert control.state.initial_entropy is None


def test_a_lower_schedule_starts_at_its_own_bound(tmp_path):
    node = {"method": "ceeh_me"}
    control = EntropyControl(parse_entropy_config(node).resolve(40))
    control.observe(0.5, 1)
    save_state(tmp_path / "s.json", control.state, parse_entropy_config(node))
    lower = parse_entropy_config({**node, "controller": {"alpha_init": 1e-4}})
    assert load_run(tmp_path / "s.json", lower).state.alpha == 1e-4


def test_null_keeps_an_h0_that_was_given(tmp_path, state, config):
    given = parse_entropy_config({"method": "aer", "controller": {"ema": 0.3}, "target": {"initial_entropy": 1 / 3}})
    save_state(tmp_path / "s.json", state, given)
    loaded = load_run(tmp_path / "s.json", config)
    assert loaded.state == state
    assert loaded.changes == ["entropy.target.initial_entropy was 0.3333333333333333 and is now None"]


def assert_names_file_and_switch(error: StateError, path) -> None:
    assert str(error).startswith(f"{path}: ")
    assert str(error).endswith(SWITCH)


def test_a_missing_file_is_refused(tmp_path, config):
    path = tmp_path / "global_step_5" / "aer_state.json"
    with pytest.raises(StateError, match="does not exist") as caught:
        load_run(path, config)
    assert_names_file_and_switch(caught.value, path)


def test_every_truncation_of_the_file_is_refused(saved, config):
    whole = saved.read_bytes()
    # The last byte is the newline after the document.
    for length in range(len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(StateError, match="truncated or damaged") as caught:
            load_run(saved, config)
    assert_names_file_and_switch(caught.value, saved)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"null", b"3", b'"text"'])
def test_a_file_of_something_else_is_refused(saved, config, content):
    saved.write_bytes(content)
    with pytest.raises(StateError) as caught:
        load_run(saved, config)
    assert_names_file_and_switch(caught.value, saved)


def changed(**state) -> dict:
    return {"state": state}


def remembering(**numbers) -> dict:
    return changed(controller={"integral": 0.12, "entropy_ema": 5e-324, **numbers})


CORRUPTIONS = {
    "other format": ({"format": "something"}, "its format is 'something'"),
    "newer version": ({"version": 5}, "newer than 4"),
    "version of other keys": ({"version": 2}, "unknown key memory"),
    "version zero": ({"version": 0}, "version is 0"),
    "version as text": ({"version": "2"}, "version is '2'"),
    "version as bool": ({"version": True}, "version is True"),
    "unknown key": ({"extra": 1}, "unknown key extra"),
    "unknown key in the state": (changed(momentum=0.0), r"unknown key state\.momentum"),
    "unknown key of the controller": (remembering(momentum=0.0), r"unknown key state\.controller\.momentum"),
    "controller of another type": (changed(controller=[0.1]), r"its state\.controller is \[0\.1\]"),
    "integral as text": (remembering(integral="0.1"), r"its state\.controller\.integral is '0\.1' .*valid number"),
    "integral lost": (remembering(integral=None), r"its state\.controller\.integral is None"),
    "integral NaN": (remembering(integral=math.nan), r"its state\.controller\.integral is nan .*finite number"),
    "integral above its bound": (remembering(integral=0.5), "controller.integral=0.5, which the controller 'pi'"),
    "one digit of the integral": (remembering(integral=0.13), "do not match their sha256"),
    "state of another type": ({"state": [1, 2]}, r"its state is \[1, 2\]"),
    "config of another type": ({"config": None}, "its config is None"),
    "alpha as text": (changed(alpha="0.1"), r"its state\.alpha is '0\.1'"),
    "alpha as whole number": (changed(alpha=0), "do not match their sha256"),
    "alpha as null": (changed(alpha=None), r"its state\.alpha is None"),
    "alpha NaN": (changed(alpha=math.nan), r"its state\.alpha is nan .*finite number"),
    "alpha infinite": (changed(alpha=math.inf), r"its state\.alpha is inf .*finite number"),
    "alpha negative": (changed(alpha=-1e-9), "alpha=-1e-09, which the controller"),
    "alpha above its bound": (changed(alpha=0.5, saturated_steps=0), "alpha=0.5, which the controller"),
    "initial_entropy NaN": (changed(initial_entropy=math.nan), r"its state\.initial_entropy is nan"),
    "initial_entropy lost": (changed(initial_entropy=None), "lacks initial_entropy"),
    "last_entropy infinite": (changed(last_entropy=-math.inf), r"its state\.last_entropy is -inf"),
    "last_entropy lost": (changed(last_entropy=None), "lacks last_entropy"),
    "entropy_sum null": (changed(entropy_sum=None), r"its state\.entropy_sum is None"),
    "entropy_count negative": (changed(entropy_count=-1), r"its state\.entropy_count is -1"),
    "step fractional": (changed(step=7.0), r"its state\.step is 7\.0 .*valid integer"),
    "step as bool": (changed(step=True), r"its state\.step is True"),
    "step negative": (changed(step=-1), r"its state\.step is -1"),
    "updates beyond steps": (changed(updates=6), "more updates than steps"),
    "skipped_updates negative": (changed(skipped_updates=-1), r"its state\.skipped_updates is -1"),
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
        load_run(path, config)
    assert_names_file_and_switch(caught.value, path)


@pytest.mark.parametrize("key", ["format", "version", "config", "state", "conditions", "sha256"])
def test_a_lost_key_is_refused(saved, config, key):
    document = json.loads(saved.read_text())
    del document[key]
    saved.write_text(json.dumps(document))
    with pytest.raises(StateError, match=rf"it lacks the key {key}\."):
        load_run(saved, config)


@pytest.mark.parametrize("key", list(vars(ControlState(alpha=0.0, controller={}))))
def test_a_lost_state_key_is_refused(saved, config, key):
    document = json.loads(saved.read_text())
    del document["state"][key]
    saved.write_text(json.dumps(document))
    # A key with a default may be newer than the file; that it was there is known from the digest.
    with pytest.raises(StateError, match=rf"the key state\.{key}\.|lacks {key}|sha256|more updates|more saturated"):
        load_run(saved, config)


def test_a_number_that_is_newer_than_the_file_has_its_default(saved, config, state):
    rewrite(saved, lambda document: document["state"].pop("saturated_steps"))
    assert load_run(saved, config).state == replace(state, saturated_steps=0)


def test_a_number_of_the_controllers_that_is_newer_than_the_file_begins_as_in_a_first_step(saved, config, state):
    rewrite(saved, lambda document: document["state"]["controller"].pop("entropy_ema"))
    remembered = {"integral": state.controller["integral"], "entropy_ema": None}
    assert load_run(saved, config).state == replace(state, controller=remembered)


@pytest.mark.parametrize("part", ["allocation", "controller", "target", "correctness"])
def test_a_setting_that_is_newer_than_the_file_has_its_default(saved, config, state, part):
    current = to_mapping(config)[part]
    name = list(current)[-1]
    rewrite(saved, lambda document: document["config"][part].pop(name))
    loaded = load_run(saved, config)
    assert loaded.state == state
    assert loaded.changes == [f"entropy.{part}.{name} is newer than the checkpoint and is {current[name]!r}"]


def test_a_setting_of_what_is_measured_that_is_newer_than_the_file_has_its_default(tmp_path, state):
    clamped = {"method": "aer", "measure": {"kind": "clamped"}}
    path = tmp_path / "s.json"
    save_state(path, state, parse_entropy_config(clamped))
    rewrite(path, lambda document: document["config"]["measure"].pop("p"))
    assert load_run(path, parse_entropy_config(clamped)).state == state
    clamped["measure"]["p"] = 0.3
    with pytest.raises(StateError, match=r"'p': 0.2} and is now .*'p': 0.3}"):
        load_run(path, parse_entropy_config(clamped))


def test_a_part_that_is_newer_than_the_file_is_named(saved, config, state):
    rewrite(saved, lambda document: document["config"].pop("regularizer"))
    loaded = load_run(saved, config)
    assert loaded.state == state
    assert loaded.changes == ["entropy.regularizer is newer than the checkpoint and is {'kind': 'bonus'}"]


@pytest.mark.parametrize("section", ["allocation", "target", "correctness", "watchdog"])
def test_a_setting_that_a_newer_package_wrote_is_refused(saved, config, section):
    rewrite(saved, lambda document: document["config"][section].update(momentum=0.5))
    with pytest.raises(StateError, match=rf"unknown key config\.{section}\.momentum, which a newer verl_aer"):
        load_run(saved, config)


def test_an_unknown_section_is_refused(saved, config):
    rewrite(saved, lambda document: document["config"].update(momentum={"kind": "none"}))
    with pytest.raises(StateError, match=r"unknown key config\.momentum"):
        load_run(saved, config)


@pytest.mark.parametrize(
    ("section", "setting", "value"), [("controller", "ki", -1.0), ("correctness", "on_missing", 3)]
)
def test_a_setting_out_of_its_bounds_is_refused(saved, config, section, setting, value):
    rewrite(saved, lambda document: document["config"][section].update({setting: value}))
    with pytest.raises(StateError, match=rf"its config\.{section}\.{setting} is {value}"):
        load_run(saved, config)


@pytest.mark.parametrize("part", ["measure", "target"])
def test_a_part_that_tells_what_h0_is_and_is_registered_no_longer_is_refused(saved, config, part):
    rewrite(saved, lambda document: document["config"].update({part: {"kind": "mine"}}))
    with pytest.raises(StateError, match=rf"its config\.{part} has the kind 'mine', which is not registered"):
        load_run(saved, config)


def test_a_controller_that_is_registered_no_longer_gives_way_to_another(saved, config, state):
    rewrite(saved, lambda document: document["config"].update(controller={"kind": "mine", "speed": 3}))
    loaded = load_run(saved, config)
    assert loaded.state == replace(state, controller={"integral": state.alpha, "entropy_ema": None})
    assert loaded.changes[0].startswith("entropy.controller was {'kind': 'mine', 'speed': 3} and is now {'kind': 'pi'")
    assert loaded.changes[1] == "what the controller 'mine' remembered is lost: 'pi' starts from alpha"


WRITTEN = {
    "version_1_aer": (
        {"method": "aer", "controller": {"ki": 0.02}},
        ControlState(
            alpha=0.0028000000000000047,
            controller={"integral": 0.0028000000000000047, "entropy_ema": 0.25},
            initial_entropy=0.8,
            entropy_sum=0.8,
            entropy_count=1,
            last_entropy=0.25,
            step=8,
            updates=7,
            skipped_updates=1,
        ),
        RunMemory(),
    ),
    "version_3_aer": (
        {"method": "aer", "controller": {"kp": 0.5}},
        ControlState(
            alpha=0.042000000000000044,
            controller={"integral": 0.007000000000000011, "entropy_ema": 0.25},
            initial_entropy=0.8,
            entropy_sum=2.97,
            entropy_count=7,
            last_entropy=0.25,
            step=8,
            updates=7,
            skipped_updates=1,
        ),
        RunMemory(),
    ),
    "version_3_skywork": (
        {"method": "skywork"},
        ControlState(
            alpha=0.0002,
            controller={"coefficient": 0.0002},
            entropy_sum=1.5099999999999998,
            entropy_count=6,
            last_entropy=0.17,
            step=6,
            updates=6,
        ),
        RunMemory(),
    ),
    "version_3_sign_rule": (
        {
            "method": "aer",
            "controller": {"kind": "sign", "step_size": 0.001, "alpha_max": 0.2, "gate": False},
        },
        ControlState(
            alpha=0.005000000000000008,
            controller={"coefficient": 0.003},
            initial_entropy=0.8,
            entropy_sum=1.55,
            entropy_count=4,
            last_entropy=0.3,
            step=4,
            updates=4,
        ),
        RunMemory(),
    ),
    "version_3_entropic": (
        {"method": "entropic", "controller": {"ema": 0.5}},
        ControlState(
            alpha=-0.04490000000000001,
            controller={"integral": -0.004900000000000001, "entropy_ema": 0.14},
            entropy_sum=0.73,
            entropy_count=4,
            last_entropy=0.14,
            step=5,
            updates=4,
            skipped_updates=1,
        ),
        RunMemory(),
    ),
    "version_3_aent": (
        {"method": "aent"},
        ControlState(
            alpha=0.00093,
            controller={"integral": 0.00093, "entropy_ema": 0.02},
            entropy_sum=1.07,
            entropy_count=4,
            last_entropy=0.02,
            step=4,
            updates=4,
        ),
        RunMemory(),
    ),
    "version_3_ceeh_me": (
        {"method": "ceeh_me"},
        ControlState(
            alpha=0.0009723699203976765,
            controller={},
            entropy_sum=1.35,
            entropy_count=3,
            last_entropy=0.4,
            step=3,
            updates=3,
        ),
        RunMemory(
            QuestionMemory(
                {"q-17": Question(1 / 3, 212, 3), "q-4": Question(0.0, None, 2), "ü": Question(0.9625, 31, 1)}
            )
        ),
    ),
    "version_4_aer": (
        {"method": "aer", "controller": {"kp": 0.5, "ema": 0.25}},
        ControlState(
            alpha=0.045375000000000026,
            controller={"integral": 0.004125000000000003, "entropy_ema": 0.23750000000000002},
            initial_entropy=0.8,
            entropy_sum=1.8499999999999999,
            entropy_count=4,
            last_entropy=0.23750000000000002,
            step=5,
            updates=4,
            skipped_updates=1,
        ),
        RunMemory(),
    ),
    "version_3_ares": (
        {"method": "ares"},
        ControlState(alpha=0.0, controller={}, entropy_sum=1.35, entropy_count=3, last_entropy=0.4, step=3, updates=3),
        RunMemory(
            reward_shaping={"threshold": 0.1 + 0.2, "target_easy": 2.0, "next_target_easy": 2.1, "gain_easy": 0.45}
        ),
    ),
}
# Version 2 had version 3's state, and had added up the entropies of H0 alone.
WRITTEN["version_2_aer"] = (
    WRITTEN["version_3_aer"][0],
    replace(WRITTEN["version_3_aer"][1], entropy_sum=0.8, entropy_count=1),
    RunMemory(),
)
WRITTEN["version_2_aer_without_conditions"] = WRITTEN["version_2_aer"]


def test_a_part_without_a_kind_is_refused(saved, config):
    rewrite(saved, lambda document: document["config"]["controller"].pop("kind"))
    with pytest.raises(StateError, match=r"its config\.controller is .*, which names no kind"):
        load_run(saved, config)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_of_every_released_version_is_read(name):
    node, state, memory = WRITTEN[name]
    loaded = load_run(FILES / f"{name}.json", parse_entropy_config(node))
    assert loaded.state == state
    assert loaded.memory == memory
    # The settings are those that it was written under; those that it lacks have their defaults.
    assert all("is newer than the checkpoint" in change for change in loaded.changes)


def test_every_file_that_is_kept_is_read():
    assert sorted(WRITTEN) == sorted(path.stem for path in FILES.iterdir())


@pytest.mark.parametrize("name", WRITTEN)
def test_a_changed_digit_in_an_older_file_is_found(name, tmp_path):
    text = (FILES / f"{name}.json").read_text()
    changed = re.sub(r'"alpha": -?[0-9.]+', '"alpha": 0.0001' if '"alpha": 0.0,' not in text else '"alpha": -0.0', text)
    (tmp_path / "s.json").write_text(changed)
    with pytest.raises(StateError, match="do not match their sha256"):
        load_run(tmp_path / "s.json", parse_entropy_config(WRITTEN[name][0]))


@pytest.mark.parametrize("section", ["controller", "aggregation"])
def test_an_older_file_without_what_its_migration_needs_is_refused(tmp_path, section):
    document = json.loads((FILES / "version_3_aer.json").read_text())
    del document["config"][section]
    (tmp_path / "s.json").write_text(json.dumps(document))
    with pytest.raises(StateError, match="do not match their sha256"):
        load_run(tmp_path / "s.json", parse_entropy_config({"method": "aer"}))


def test_a_file_without_conditions_has_none_that_changed():
    assert changed_conditions(FILES / "version_1_aer.json", {"temperature": 0.7}) == []


def test_an_interrupted_write_leaves_the_file_that_was_there(saved, config, state, monkeypatch):
    before = saved.read_bytes()

    def crash(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="disk full"):
        save_state(saved, ControlState(alpha=0.1, controller={}), config)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_state_that_is_not_finite_is_never_written(tmp_path, config):
    with pytest.raises(ValueError, match="JSON"):
        save_state(tmp_path / "s.json", ControlState(alpha=math.nan, controller={}), config)
    assert list(tmp_path.iterdir()) == []


def test_changed_conditions_are_named_and_do_not_refuse_the_state(tmp_path, state, config):
    path = tmp_path / "s.json"
    save_state(path, state, config, {"temperature": 1.0, "length": 8, "gone": 1})
    assert load_run(path, config).state == state
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
        load_run(path, config)


def test_the_runs_memory_comes_back(tmp_path, state, config):
    questions = QuestionMemory({"x": Question(1 / 3, 20, 7), "ü": Question(0.0, None, 3)})
    memory = RunMemory(questions, {"threshold": 0.1 + 0.2})
    save_state(tmp_path / "s.json", state, config, memory=memory)
    assert load_run(tmp_path / "s.json", config) == (state, memory, [])
    assert load_run(tmp_path / "s.json", config).state == state


BAD_MEMORY = {
    "no questions": ({"reward_shaping": {}}, "sha256"),
    "unknown memory": ({"questions": {}, "reward_shaping": {}, "moments": {}}, "unknown key memory.moments"),
    "questions in a list": ({"questions": [], "reward_shaping": {}}, "its memory.questions is []"),
    "shaping in a number": ({"questions": {}, "reward_shaping": 1.0}, "its memory.reward_shaping is 1.0"),
    "short question": ({"questions": {"x": [0.5, 3]}, "reward_shaping": {}}, "lacks the key memory.questions.x.2"),
    "accuracy above 1": ({"questions": {"x": [1.5, 3, 1]}, "reward_shaping": {}}, "its memory.questions.x.0 is 1.5"),
    "accuracy as text": ({"questions": {"x": ["1", 3, 1]}, "reward_shaping": {}}, "its memory.questions.x.0 is '1'"),
    "shortest in parts": ({"questions": {"x": [1.0, 2.5, 1]}, "reward_shaping": {}}, "its memory.questions.x.1 is 2.5"),
    "step missing": ({"questions": {"x": [1.0, 2, None]}, "reward_shaping": {}}, "its memory.questions.x.2 is None"),
    "shaping as text": ({"questions": {}, "reward_shaping": {"gain": "1"}}, "its memory.reward_shaping.gain is '1'"),
    "another accuracy": ({"questions": {"x": [0.25, 3, 1]}, "reward_shaping": {}}, "sha256"),
}


@pytest.mark.parametrize("name", BAD_MEMORY)
def test_a_damaged_memory_is_refused(saved, config, name):
    memory, complaint = BAD_MEMORY[name]
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "memory": memory}))
    with pytest.raises(StateError, match=re.escape(complaint)):
        load_run(saved, config)
