from __future__ import annotations

import math
from typing import Optional

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from verl_aer import ConfigError, method_names, parse_entropy_config, part_names, to_mapping
from verl_aer._settings import Settings, allowed_values
from verl_aer.config.schema import CorrectnessConfig, EntropyConfig
from verl_aer.parts.advantage_shaping import NoAdvantageShaping
from verl_aer.parts.allocation import Difficulty, Uniform
from verl_aer.parts.controller import PI, Fixed
from verl_aer.parts.measure import Clamped, Full, Same, Sampled
from verl_aer.parts.regularizer import Bonus
from verl_aer.parts.reward_shaping import NoRewardShaping
from verl_aer.parts.target import Absolute, Anchored, NoTarget
from verl_aer.parts.token_selection import All


def problems_of(node: object) -> dict[str, str]:
    """The problems of a config by key, each as it is shown."""
    with pytest.raises(ConfigError) as caught:
        parse_entropy_config(node)
    shown = {problem.key: str(problem) for problem in caught.value.problems}
    assert len(shown) == len(caught.value.problems)
    return shown


def test_a_method_alone_is_its_defaults():
    assert parse_entropy_config({"method": "aer"}) == EntropyConfig(
        method="aer",
        allocation=Difficulty(shape="linear", rho=0.5),
        measure=Full(),
        pushed=Same(),
        token_selection=All(),
        target=Anchored(tau=0.4, initial_entropy=None, anchor_steps=1),
        controller=PI(alpha_init=0.0, alpha_min=0.0),
        regularizer=Bonus(),
        reward_shaping=NoRewardShaping(),
        advantage_shaping=NoAdvantageShaping(),
        aggregation="token-mean",
        correctness=CorrectnessConfig(reward_key="acc", threshold=None),
        on_missing_state="error",
    )


def test_what_is_left_out_is_the_methods_own_value_not_the_parts():
    # none's coefficient is 0, Fixed's own default is not.
    assert Fixed().coefficient != 0
    config = parse_entropy_config({"method": "none", "controller": {"kind": "fixed"}})
    assert config.controller == Fixed(coefficient=0.0)


def test_another_part_than_the_methods_has_its_own_defaults():
    config = parse_entropy_config({"method": "aer", "allocation": {"kind": "uniform"}})
    assert config.allocation == Uniform()


def test_parts_of_a_users_choice():
    config = parse_entropy_config(
        {
            "method": "aer",
            "allocation": {"kind": "uniform"},
            "target": {"kind": "none"},
            "controller": {"kind": "fixed", "coefficient": 1},
            "aggregation": "same_as_policy_loss",
            "correctness": {"reward_key": "solved", "threshold": 0},
            "on_missing_state": "restart",
        }
    )
    assert (config.target, config.controller) == (NoTarget(), Fixed(coefficient=1.0))
    # A whole number where a number is meant is one, and comes out a float for the state file's sake.
    assert type(config.controller.coefficient) is float
    assert type(config.correctness.threshold) is float
    assert (config.aggregation, config.correctness.reward_key, config.on_missing_state) == (
        "same_as_policy_loss",
        "solved",
        "restart",
    )


def test_two_configs_of_one_method_share_no_parts():
    first, second = parse_entropy_config({"method": "aer"}), parse_entropy_config({"method": "aer"})
    assert first == second
    assert first.target is not second.target
    with pytest.raises(ValidationError, match="frozen"):
        first.target.tau = 0.9


@pytest.mark.parametrize("method", method_names())
def test_to_mapping_is_the_inverse(method):
    config = parse_entropy_config({"method": method})
    assert parse_entropy_config(to_mapping(config)) == config
    assert parse_entropy_config(OmegaConf.create(to_mapping(config))) == config


def test_what_is_pushed_is_what_is_measured_unless_another_is_named():
    assert parse_entropy_config({"method": "aent"}).pushed_measure == Clamped(p=0.2)
    skywork = parse_entropy_config({"method": "skywork"})
    assert (skywork.measure, skywork.pushed_measure) == (Sampled(), Full())
    cut = parse_entropy_config({"method": "aer", "pushed": {"kind": "clamped", "p": 0.4}})
    assert (cut.measure, cut.pushed_measure) == (Full(), Clamped(p=0.4))
    assert parse_entropy_config(to_mapping(cut)) == cut


def test_what_cannot_be_pushed_is_refused():
    shown = problems_of({"method": "aer", "pushed": {"kind": "ful"}, "measure": {"kind": "same"}})
    assert "no measure is named 'ful' (did you mean 'full'?)" in shown["entropy.pushed.kind"]
    assert "no measure is named 'same'" in shown["entropy.measure.kind"]
    shown = problems_of({"method": "aer", "pushed": {"kind": "full", "p": 0.4}})
    assert "which has no settings; it belongs to 'clamped' and 'nucleus'" in shown["entropy.pushed.p"]
    assert (
        "must be in [0, 1)"
        in problems_of({"method": "aer", "pushed": {"kind": "clamped", "p": 1.0}})["entropy.pushed.p"]
    )


@pytest.mark.parametrize("method", ["siren", "epo"])
def test_a_penalty_towards_a_target_pushes_what_is_measured(method):
    shown = problems_of({"method": method, "pushed": {"kind": "sampled"}})
    assert "needs the same pushed and measured entropy" in shown["entropy.pushed.kind"]
    own = to_mapping(parse_entropy_config({"method": method}))["measure"]
    assert parse_entropy_config({"method": method, "pushed": own}).pushed_measure.kind == own["kind"]


def test_every_problem_is_in_one_error():
    shown = problems_of(
        {
            "method": "aer",
            "alocation": {},
            "allocation": {"rho": 0, "shape": "cubic", "include_all_wrong": "yes"},
            "measure": {"kind": "ful"},
            "target": {"tau": 1.3, "anchor_steps": 0, "initial_entropy": -1.0, "level": 2},
            "controller": {
                "ki": -0.1,
                "alpha_min": 0.3,
                "alpha_max": 0.2,
                "warmup_steps": -1,
                "dead_band": -0.1,
                "ema": 1.0,
            },
            "aggregation": "seq-mean",
            "correctness": {"reward_key": 3, "treshold": 0.5},
            "on_missing_state": "ignore",
        }
    )
    assert list(shown) == [
        "entropy.alocation",
        "entropy.allocation.shape",
        "entropy.allocation.rho",
        "entropy.allocation.include_all_wrong",
        "entropy.measure.kind",
        "entropy.target.level",
        "entropy.target.tau",
        "entropy.target.initial_entropy",
        "entropy.target.anchor_steps",
        "entropy.controller.alpha_max",
        "entropy.controller.ki",
        "entropy.controller.warmup_steps",
        "entropy.controller.dead_band",
        "entropy.controller.ema",
        "entropy.correctness.treshold",
        "entropy.correctness.reward_key",
        "entropy.aggregation",
        "entropy.on_missing_state",
    ]


def test_the_error_numbers_its_problems_and_says_what_to_do():
    with pytest.raises(ConfigError) as caught:
        parse_entropy_config({"method": "aer", "target": {"tau": 1.3}, "aggregation": "sequence"})
    assert str(caught.value).splitlines() == [
        "the entropy control found 2 problems in the config:",
        "  1. entropy.target.tau: must be in (0, 1], got 1.3. Set entropy.target.tau to a value in (0, 1], "
        "such as 0.4.",
        "  2. entropy.aggregation: must be one of token-mean, seq-mean-token-mean, same_as_policy_loss, "
        "got 'sequence'. Set entropy.aggregation=token-mean.",
    ]


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("target", "tau", 0.0, "must be in (0, 1], got 0.0"),
        ("target", "tau", -0.4, "must be in (0, 1], got -0.4"),
        ("target", "tau", 1.0001, "must be in (0, 1], got 1.0001"),
        ("target", "tau", math.nan, "must be a finite number, got nan"),
        ("target", "tau", "0.4", "must be a number, got '0.4' (str)"),
        ("target", "tau", True, "must be a number, got True (bool)"),
        ("target", "tau", None, "must not be null"),
        ("target", "tau", [0.4], "must be a number, got [0.4] (list)"),
        ("target", "anchor_steps", 1.0, "must be a whole number, got 1.0 (float)"),
        ("target", "anchor_steps", True, "must be a whole number, got True (bool)"),
        ("target", "initial_entropy", 0.0, "must be null or > 0, got 0.0"),
        ("target", "initial_entropy", "high", "must be null or a number, got 'high' (str)"),
        ("allocation", "rho", 0.0, "must be > 0, got 0.0"),
        ("allocation", "rho", -0.5, "must be > 0, got -0.5"),
        ("allocation", "rho", math.inf, "must be a finite number, got inf"),
        ("allocation", "include_all_wrong", 1, "must be true or false, got 1 (int)"),
        ("allocation", "shape", 2, "must be one of linear, step, got 2"),
        ("controller", "ki", -1e-3, "must be >= 0, got -0.001"),
        ("controller", "alpha_max", -0.1, "must be >= alpha_min (0), got -0.1"),
        ("controller", "alpha_init", 0.3, "must be between alpha_min (0) and alpha_max (0.2), got 0.3"),
        ("controller", "ema", 1.0, "must be in [0, 1), got 1.0"),
        ("correctness", "threshold", math.nan, "must be a finite number, got nan"),
        ("correctness", "reward_key", None, "must not be null"),
        ("correctness", "on_missing", "skip", "must be one of error, wrong, got 'skip'"),
    ],
)
def test_a_bad_value_is_named_with_its_bound(part, field, value, message):
    shown = problems_of({"method": "aer", part: {field: value}})
    assert list(shown) == [f"entropy.{part}.{field}"]
    assert shown[f"entropy.{part}.{field}"].startswith(f"entropy.{part}.{field}: {message}. Set entropy.{part}.")


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("target", {"tau": 1.0}),
        ("target", {"tau": 1}),
        ("allocation", {"rho": 1.5}),
        ("controller", {"ki": 0.0}),
        ("controller", {"ema": 0.0, "alpha_min": 0.1, "alpha_init": 0.1, "alpha_max": 0.1}),
        ("target", {"initial_entropy": 0.7, "anchor_steps": 5}),
    ],
)
def test_values_on_the_edge_are_accepted(part, settings):
    parsed = getattr(parse_entropy_config({"method": "aer", part: settings}), part)
    assert {name: getattr(parsed, name) for name in settings} == settings


def test_a_bound_against_a_value_of_a_wrong_type_is_not_a_second_problem():
    shown = problems_of({"method": "aer", "controller": {"alpha_max": "high", "alpha_init": 0.5, "ki": -1.0}})
    assert list(shown) == ["entropy.controller.alpha_max", "entropy.controller.ki"]


def test_unknown_names_list_the_known_ones_and_suggest():
    shown = problems_of({"method": "aerr", "target": {"kind": "absolut"}})
    assert "(did you mean 'aer'?)" in shown["entropy.method"]
    assert all(name in shown["entropy.method"] for name in method_names())
    assert "(did you mean 'absolute'?)" in shown["entropy.target.kind"]
    assert all(name in shown["entropy.target.kind"] for name in part_names("target"))


def test_a_setting_of_another_kind_says_which_override_removes_it():
    # What is left of the preset when only the kind was overridden.
    shown = problems_of({"method": "aer", "target": {"kind": "absolute", "entropy": 0.3, "tau": 0.4}})
    assert list(shown) == ["entropy.target.tau"]
    assert "it belongs to 'anchored'" in shown["entropy.target.tau"]
    assert "entropy/target=absolute" in shown["entropy.target.tau"]
    assert "~entropy.target.tau" in shown["entropy.target.tau"]


def test_a_misspelt_setting_is_suggested():
    shown = problems_of({"method": "aer", "controller": {"warmup_step": 3}})
    assert "(did you mean 'warmup_steps'?)" in shown["entropy.controller.warmup_step"]


def test_a_missing_method_is_a_problem():
    shown = problems_of({"target": {"tau": 0.4}})
    assert list(shown) == ["entropy.method"]
    assert "aer_no_allocation" in shown["entropy.method"]


@pytest.mark.parametrize("node", [None, [], "aer", 3])
def test_a_node_that_is_no_mapping_is_a_problem(node):
    assert list(problems_of(node)) == ["entropy"]


@pytest.mark.parametrize("part", ["allocation", "measure", "target", "controller", "correctness"])
def test_a_part_that_is_no_mapping_is_a_problem(part):
    assert list(problems_of({"method": "aer", part: "uniform"})) == [f"entropy.{part}"]


@pytest.mark.parametrize("kind", [None, 3, ["fixed"]])
def test_a_kind_that_is_no_name_is_a_problem(kind):
    assert list(problems_of({"method": "aer", "controller": {"kind": kind}})) == ["entropy.controller.kind"]


def test_a_controller_that_steers_needs_a_target():
    shown = problems_of({"method": "aer", "target": {"kind": "none"}})
    assert list(shown) == ["entropy.target.kind"]
    assert "entropy/controller=fixed" in shown["entropy.target.kind"]


def test_a_penalty_that_draws_needs_a_target_and_gives_it_a_use():
    shown = problems_of({"method": "siren", "target": {"kind": "none"}})
    assert list(shown) == ["entropy.target.kind"]
    assert "entropy/regularizer=bonus" in shown["entropy.target.kind"]
    # A fixed coefficient beside a target: the regularizer reads it.
    assert parse_entropy_config(
        {"method": "fixed", "regularizer": {"kind": "squared_anchor"}, "target": {"kind": "band"}}
    )


# Of the parts of other methods than AER: method, part, setting, value, what it must be.
BAD_SETTINGS = [
    ("siren", "token_selection", "quantile", 1.0, "in [0, 1)"),
    ("siren", "measure", "p", 0.0, "in (0, 1]"),
    ("epo", "target", "kappa_low", -0.1, ">= 0"),
    ("epo", "target", "kappa_high", -0.1, ">= kappa_low (0)"),
    ("epo", "regularizer", "weight", -0.1, ">= 0"),
    ("epo", "regularizer", "gamma", -0.1, ">= 0"),
    ("epo", "regularizer", "total_steps", 1, "null or >= 2"),
    ("ceeh_me", "controller", "total_steps", 0, "null or >= 1"),
    ("ceeh_me", "allocation", "hard_weight", -1.0, ">= 0"),
    ("ceeh_me", "reward_shaping", "beta", -0.1, ">= 0"),
    ("ceeh_ea", "advantage_shaping", "a", -0.1, ">= 0"),
    ("ceeh_ea", "advantage_shaping", "kappa", 0.0, "> 0"),
    ("ceeh_ea", "question_memory", "ema_up", 0.0, "in (0, 1]"),
    ("ceeh_ea", "question_memory", "ema_down", 1.5, "in (0, 1]"),
    ("steer", "advantage_shaping", "weighting", "cubic", "one of linear, exponential"),
    ("steer", "advantage_shaping", "highest", 0.5, ">= lowest (0.8)"),
    ("ares", "reward_shaping", "window", 0, ">= 1"),
    ("ares", "reward_shaping", "percentile", 1.0, "in (0, 1)"),
    ("ares", "reward_shaping", "threshold_ema", 1.0, "in [0, 1)"),
    ("ares", "reward_shaping", "rate", -0.1, ">= 0"),
    ("entropic", "advantage_shaping", "probability", 1.0, "in [0, 1)"),
    ("entropic", "controller", "alpha_min", 2.0, ">= alpha_min (2)"),
    ("skywork", "controller", "alpha_min", -0.1, ">= 0"),
]


@pytest.mark.parametrize(("method", "part", "field", "value", "bound"), BAD_SETTINGS)
def test_a_bad_value_of_any_methods_part_is_named(method, part, field, value, bound):
    (shown,) = problems_of({"method": method, part: {field: value}}).values()
    assert bound in shown
    assert shown.startswith(f"entropy.{part}.")


def test_yaml_scientific_notation_is_a_number():
    # PyYAML alone reads 1e-3 as text; OmegaConf, which Hydra uses, reads a number.
    node = OmegaConf.create("method: aer\ncontroller: {ki: 1e-3}\n")
    assert parse_entropy_config(node).controller.ki == 1e-3


def test_a_missing_mandatory_value_is_a_problem():
    node = OmegaConf.create({"method": "aer", "controller": {"ki": "???"}})
    assert list(problems_of(node)) == ["entropy.controller.ki"]


def test_interpolations_are_resolved():
    node = OmegaConf.create({"method": "aer", "controller": {"alpha_max": 0.1, "alpha_init": "${.alpha_max}"}})
    assert parse_entropy_config(node).controller.alpha_init == 0.1


@pytest.mark.guards("T18")
def test_both_spellings_of_an_optional_setting_are_understood():
    class OldAndNew(Settings):
        old: Optional[float] = None  # noqa: UP045
        new: float | None = None

    assert OldAndNew(old=1, new=2) == OldAndNew(old=1.0, new=2.0)
    for name in ("old", "new"):
        assert allowed_values(OldAndNew, name) == "null or a number"


def test_absolute_target_must_be_above_zero():
    shown = problems_of({"method": "aer_absolute_target", "target": {"entropy": 0}})
    assert list(shown) == ["entropy.target.entropy"]
    assert Absolute() == Absolute(entropy=0.2)


@pytest.mark.parametrize(
    ("node", "uses"),
    [
        ({"method": "fixed"}, False),
        ({"method": "fixed", "allocation": {"kind": "difficulty"}}, True),
        ({"method": "fixed", "reward_shaping": {"kind": "ares"}}, True),
        ({"method": "fixed", "advantage_shaping": {"kind": "entropy_bonus"}}, False),
        ({"method": "aer", "allocation": {"kind": "uniform"}}, False),
        ({"method": "ceeh_me", "allocation": {"kind": "uniform"}}, True),
    ],
)
def test_accuracy_is_used_where_a_part_reads_it(node, uses):
    assert parse_entropy_config(node).uses_accuracy == uses
