from __future__ import annotations

from importlib import resources

import pytest
from omegaconf import OmegaConf

from tests.unit.test_readme import leaves
from verl_aer import get_method, method_names, parse_entropy_config, to_mapping

PRESETS = {
    path.name.removesuffix(".yaml"): path
    for path in resources.files("verl_aer.config").joinpath("entropy").iterdir()
    if path.name.endswith(".yaml")
}
OWN = PRESETS.pop("own")
"""The one preset without a method of ours."""


def load(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.create(PRESETS[name].read_text(encoding="utf-8")))


def test_there_is_one_preset_for_each_method():
    assert sorted(PRESETS) == method_names()
    assert len(PRESETS) == 18


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_spells_out_its_methods_defaults(name):
    assert load(name)["entropy"] == to_mapping(parse_entropy_config({"method": name}))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_sets_what_the_entropy_control_needs_of_verl(name):
    preset = load(name)
    assert PRESETS[name].read_text(encoding="utf-8").startswith("# @package _global_\n")
    preset.pop("entropy")
    trainer, hydra = preset.pop("trainer"), preset.pop("hydra")
    needed = {"actor_rollout_ref.actor.calculate_entropy": True, "actor_rollout_ref.actor.entropy_coeff": 0}
    assert leaves(preset) == {**needed, **get_method(name).verl}
    assert trainer == {"v1": {"trainer_mode": "aer_sync"}}
    assert hydra["callbacks"] == {"verl_aer": {"_target_": "verl_aer.integration.callback.RunCallback"}}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_has_a_comment_above_each_field(name):
    lines = PRESETS[name].read_text(encoding="utf-8").splitlines()
    keys = [number for number, line in enumerate(lines) if line.strip() and not line.strip().startswith("#")]
    uncommented = [lines[number].strip() for number in keys if not lines[number - 1].strip().startswith("#")]
    # The callback's only entry says what it is in its own line.
    assert uncommented == ["_target_: verl_aer.integration.callback.RunCallback"]


def test_the_preset_for_methods_of_users_leaves_all_parts_to_the_method():
    own = OmegaConf.to_container(OmegaConf.create(OWN.read_text(encoding="utf-8")))
    none = load("none")
    assert own.pop("entropy") == {"method": "???"}
    none.pop("entropy")
    assert own == none
