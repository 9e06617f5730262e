"""Methods and parts as Hydra config groups."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import zip_longest

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from verl_aer import (
    Allocation,
    ConfigError,
    get_method,
    get_part,
    method_names,
    parse_entropy_config,
    part_names,
    register_method,
    register_part,
    to_mapping,
)
from verl_aer.config import search_path
from verl_aer.methods import base as methods
from verl_aer.parts import base as parts
from verl_aer.parts.base import ROLES


@pytest.fixture(scope="module", autouse=True)
def initialized() -> Iterator[None]:
    """Hydra as in a process of a run: with our presets, about to compose."""
    search_path.install()
    with hydra():
        yield


@contextmanager
def hydra() -> Iterator[None]:
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    with initialize_config_module("hydra.conf", version_base=None):
        yield
    GlobalHydra.instance().hydra = before


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(methods, "_methods", dict(methods._methods))
    monkeypatch.setattr(parts, "_parts", {role: dict(known) for role, known in parts._parts.items()})
    monkeypatch.setattr(ConfigStore.instance(), "repo", deepcopy(ConfigStore.instance().repo))


def composed(*overrides: str, with_hydra: bool = False) -> DictConfig:
    return compose(overrides=list(overrides), return_hydra_config=with_hydra)


def leaves(node: dict, path: tuple[str, ...] = ()) -> dict[str, object]:
    """Return dotted key -> value of every leaf."""
    found = {}
    for key, value in node.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {".".join((*path, key)): value}
    return found


def entropy_node(*overrides: str) -> dict:
    return OmegaConf.to_container(composed(*overrides).entropy)


@pytest.mark.parametrize("name", method_names())
def test_a_method_is_a_preset_of_all_its_settings(name):
    assert entropy_node(f"+entropy={name}") == to_mapping(parse_entropy_config({"method": name}))


@pytest.mark.parametrize("name", method_names())
def test_a_preset_sets_what_the_entropy_control_needs_of_verl(name):
    config = composed(f"+entropy={name}", with_hydra=True)
    callback = {"_target_": "verl_aer.integration.callback.RunCallback"}
    assert OmegaConf.to_container(config.hydra.callbacks) == {"verl_aer": callback}
    rest = OmegaConf.to_container(composed(f"+entropy={name}"))
    rest.pop("entropy")
    needed = {
        "actor_rollout_ref.actor.calculate_entropy": True,
        "actor_rollout_ref.actor.entropy_coeff": 0,
        "trainer.v1.trainer_mode": "aer_sync",
    }
    assert leaves(rest) == {**needed, **get_method(name).verl}


def test_a_config_without_a_preset_has_nothing_of_ours():
    config = composed(with_hydra=True)
    assert "entropy" not in config
    assert config.hydra.callbacks == {}


def exchanges() -> Iterator[dict[str, str]]:
    """Choices of parts, in which each registered part occurs."""
    for chosen in zip_longest(*(part_names(kind) for kind in ROLES)):
        yield {kind: name for kind, name in zip(ROLES, chosen, strict=True) if name}


@pytest.mark.parametrize("name", ["aent", "entropic", "none", "siren"])
def test_a_part_that_is_exchanged_has_its_own_defaults_and_nothing_of_the_method(name):
    for chosen in exchanges():
        node = entropy_node(f"+entropy={name}", *(f"entropy/{kind}={part}" for kind, part in chosen.items()))
        for kind, part in chosen.items():
            assert node[kind] == {"kind": part, **vars(get_part(kind, part)())}


@pytest.mark.parametrize("controller", part_names("controller"))
@pytest.mark.parametrize("target", part_names("target"))
def test_every_controller_goes_with_every_target_or_says_why_not(controller, target):
    node = entropy_node("+entropy=aer", f"entropy/controller={controller}", f"entropy/target={target}")
    if get_part("controller", controller).uses_target and target == "none":
        with pytest.raises(ConfigError, match=r"found 1 problem in the config:\n  1\. entropy\.target\.kind: "):
            parse_entropy_config(node)
        return
    config = parse_entropy_config(node)
    assert (config.controller, config.target) == (
        get_part("controller", controller)(),
        get_part("target", target)(),
    )


def test_a_setting_of_an_exchanged_part_is_one_override():
    node = entropy_node("+entropy=aer", "entropy/target=absolute", "entropy.target.entropy=0.3")
    assert node["target"] == {"kind": "absolute", "entropy": 0.3}


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(MissingConfigException) as method:
        composed("+entropy=are")
    assert all(f"\t{name}\n" in str(method.value) for name in method_names())
    with pytest.raises(MissingConfigException) as part:
        composed("+entropy=siren", "entropy/controller=pid")
    options = str(part.value).partition("Available options in 'entropy/controller':\n\t")[2].partition("\nConfig")[0]
    assert options.split() == part_names("controller")


def test_the_settings_for_a_machine_without_an_accelerator_are_a_group():
    assert composed("+hardware=cpu").trainer.device == "cpu"


def test_without_an_accelerator_workers_start_with_an_interpreter_that_is_there():
    command = shlex.split(composed("+hardware=cpu").ray_kwargs.ray_init.runtime_env.py_executable)
    done = subprocess.run([*command, "-c", "print('here')"], capture_output=True, text=True, timeout=60)
    assert done.stdout == "here\n", done.stderr


def test_what_a_user_registers_later_is_a_preset_and_a_member_of_its_group(own_registry):
    assert "late" not in str(entropy_node("+entropy=aer"))

    @register_part("late")
    class Late(Allocation):
        scale: float
        floor: float = 0.5

        def weights(self, groups):
            return groups.accuracy

    @register_method("late_method")
    def late_method():
        return replace(get_method("aer"), allocation=Late(scale=2.0))

    with hydra():
        node, config = entropy_node("+entropy=late_method"), composed("+entropy=aer", "entropy/allocation=late")
    assert node["allocation"] == {"kind": "late", "scale": 2.0, "floor": 0.5}
    with pytest.raises(MissingMandatoryValue):
        _ = config.entropy.allocation.scale
    assert config.entropy.allocation.floor == 0.5


def test_a_method_that_cannot_be_built_fails_only_those_who_ask_for_us(monkeypatch, own_registry):
    monkeypatch.setattr("verl_aer._import_hooks.failures", found := [])

    @register_method("broken")
    def broken():
        raise ValueError("its file is gone")

    with hydra():
        assert "entropy" not in composed()
    assert found == ["verl_aer.config.search_path.store_presets failed: ValueError: its file is gone"]
