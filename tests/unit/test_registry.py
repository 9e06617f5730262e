from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import verl_aer
from verl_aer import (
    Allocation,
    Bounds,
    Controller,
    Method,
    Output,
    Target,
    UnknownNameError,
    get_method,
    get_part,
    method_names,
    parse_entropy_config,
    part_names,
    register_method,
    register_part,
    to_mapping,
)
from verl_aer.methods import base as methods
from verl_aer.parts import base as parts
from verl_aer.parts.controller import Fixed


@pytest.fixture
def own_registry(monkeypatch):
    """A registry that forgets what the test registers."""
    monkeypatch.setattr(parts, "_parts", {role: dict(known) for role, known in parts._parts.items()})
    monkeypatch.setattr(methods, "_methods", dict(methods._methods))


def test_the_methods_and_parts_that_ship():
    assert method_names() == [
        "aent", "aer", "aer_absolute_target", "aer_allocation_only", "aer_no_allocation", "ares", "ceeh_ea",
        "ceeh_me", "clip_cov", "clip_higher", "entropic", "epo", "fixed", "kl_cov", "none", "siren", "skywork", "steer",
    ]  # fmt: skip
    assert set(part_names("allocation")) >= {"difficulty", "uniform"}
    assert part_names("measure") == ["clamped", "full", "nucleus", "sampled"]
    assert part_names("pushed") == ["clamped", "full", "nucleus", "same", "sampled"]
    assert part_names("target") == ["absolute", "anchored", "band", "history", "none"]
    assert part_names("controller") == ["fixed", "pi", "schedule", "sign"]
    assert part_names("token_selection") == ["all", "top_quantile", "turns"]
    assert part_names("regularizer") == ["bonus", "history_hinge", "none", "squared_anchor"]
    assert part_names("reward_shaping") == ["ares", "length", "none"]
    assert part_names("advantage_shaping") == ["entropy_bonus", "none", "signed", "steer"]


@pytest.mark.parametrize("name", method_names())
def test_every_method_names_its_formula_source_and_standing(name):
    method = get_method(name)
    build = methods._methods[name]
    assert method.provenance in methods.PROVENANCES
    assert method.source
    assert method.summary
    assert "=" in build.__doc__.splitlines()[0]


def test_aer_is_labelled_as_a_reading():
    assert (get_method("aer").provenance, get_method("aer").source) == ("reimplementation", "arXiv 2510.10959")


def test_each_ablation_changes_one_thing_of_aer():
    aer = to_mapping(parse_entropy_config({"method": "aer"}))
    differences = {
        name: [part for part, value in to_mapping(parse_entropy_config({"method": name})).items() if value != aer[part]]
        for name in ("aer_no_allocation", "aer_absolute_target", "aer_allocation_only")
    }
    assert differences == {
        "aer_no_allocation": ["method", "allocation"],
        "aer_absolute_target": ["method", "target"],
        # Without a target there is nothing to steer towards: the controller goes with it.
        "aer_allocation_only": ["method", "target", "controller"],
    }


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"no method is named 'ear'.*known: aent, aer, "):
        get_method("ear")
    with pytest.raises(UnknownNameError, match=r"no controller is named 'sing' \(did you mean 'sign'\?\)"):
        get_part("controller", "sing")


def test_a_users_own_allocation_is_chosen_by_name(own_registry):
    @register_part("squared")
    class Squared(Allocation):
        scale: float = 1.0

        def weights(self, groups):
            return self.scale * (1 - groups.accuracy) ** 2

    config = parse_entropy_config({"method": "aer", "allocation": {"kind": "squared", "scale": 2}})
    assert config.allocation == Squared(scale=2.0)
    assert to_mapping(config)["allocation"] == {"kind": "squared", "scale": 2.0}
    groups = verl_aer.Groups(np.array([0.5]), np.array([2]), np.array([0, 0]))
    assert verl_aer.parts.allocation.allocate(config.allocation, groups).tolist() == [0.5, 0.5]


def test_a_users_own_controller_and_target_steer_the_control(own_registry):
    @register_part("halving")
    class Halving(Controller):
        alpha_init: float = 0.08

        def initial_alpha(self):
            return self.alpha_init

        def init(self, alpha):
            return {"halvings": 0}

        def update(self, state, seen):
            halvings = state["halvings"] + (seen.entropy > seen.target)
            return {"halvings": halvings}, Output(self.alpha_init / 2**halvings)

    @register_part("last_level")
    class LastLevel(Target):
        def bounds(self, initial_entropy, history):
            return Bounds(0.5, 0.5)

    config = parse_entropy_config(
        {"method": "aer", "controller": {"kind": "halving"}, "target": {"kind": "last_level"}}
    )
    control = verl_aer.EntropyControl(config)
    assert [control.observe(h, t).next_alpha for t, h in enumerate([0.6, 0.4, 0.9], 1)] == [0.04, 0.04, 0.02]
    # A whole number is saved as the float that a state file holds.
    assert repr(control.state.controller) == "{'halvings': 2.0}"


def test_a_method_of_a_users_own_is_parsed(own_registry):
    @register_method("gentle")
    def gentle() -> Method:
        """alpha = 0.001. Source: a test."""
        return replace(get_method("fixed"), controller=Fixed(coefficient=0.001))

    assert parse_entropy_config({"method": "gentle"}).controller.coefficient == 0.001
    assert parse_entropy_config({"method": "fixed"}).controller.coefficient == 0.01


def test_a_name_cannot_be_taken_twice(own_registry):
    with pytest.raises(ValueError, match="allocation 'uniform' is already registered by Uniform"):

        @register_part("uniform")
        class Other(Allocation):
            def weights(self, groups):
                return groups.accuracy


def test_a_part_without_a_role_is_refused(own_registry):
    with pytest.raises(TypeError, match=r"part 'hollow': Hollow has no role; derive it from .* verl_aer\.Allocation"):

        @register_part("hollow")
        class Hollow:
            pass


def test_a_part_that_lacks_a_method_is_refused_when_it_is_registered(own_registry):
    with pytest.raises(TypeError, match="allocation 'hollow': Hollow does not define weights"):

        @register_part("hollow")
        class Hollow(Allocation):
            pass


def test_an_unknown_standing_is_refused():
    method = get_method("aer")
    with pytest.raises(ValueError, match="provenance must be one of"):
        Method(method.allocation, method.measure, method.target, method.controller, "proven", "x", "y")


def test_loading_a_module_again_registers_its_parts_again(own_registry):
    def load() -> type:
        @register_part("reloaded")
        class Reloaded(Target):
            def bounds(self, initial_entropy, history):
                return Bounds(0.5, 0.5)

        return Reloaded

    first, second = load(), load()
    assert first is not second
    assert get_part("target", "reloaded") is second
