from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import verl_aer
from verl_aer.cli.main import main
from verl_aer.launch.runtime_env import SET_BY_VERL, runtime_env_yaml


def test_it_carries_the_package_and_has_veRL_load_it():
    described = yaml.safe_load(runtime_env_yaml())
    assert described["py_modules"] == [str(Path(verl_aer.__file__).parent)]
    assert described["env_vars"] == {"VERL_USE_EXTERNAL_MODULES": "verl_aer.integration.plugin"}


def test_the_users_packages_come_along_and_are_loaded_after_ours(tmp_path):
    package = tmp_path / "my_methods"
    package.mkdir()
    (package / "__init__.py").touch()
    described = yaml.safe_load(runtime_env_yaml([package], ["VERL_USE_EXTERNAL_MODULES=theirs", "A=b=c"]))
    assert described["py_modules"][1] == str(package)
    assert described["env_vars"] == {
        "VERL_USE_EXTERNAL_MODULES": "verl_aer.integration.plugin,my_methods,theirs",
        "A": "b=c",
    }


@pytest.mark.parametrize(
    ("modules", "variables", "message"),
    [
        (["/no/such"], [], "--module /no/such: not a package"),
        ([], ["HF_HOME"], "--env HF_HOME: write NAME=VALUE"),
        ([], ["=x"], "--env =x: write NAME=VALUE"),
        ([], ["NCCL_ALGO=Ring"], "--env NCCL_ALGO: veRL sets it itself"),
    ],
)
def test_what_cannot_be_carried_is_named(modules, variables, message):
    with pytest.raises(ValueError, match=message):
        runtime_env_yaml(list(map(Path, modules)), variables)


def test_the_command_writes_a_file(tmp_path, capsys):
    assert main(["runtime-env", "--env", "A=b", "--out", str(tmp_path / "env.yaml")]) == 0
    assert yaml.safe_load((tmp_path / "env.yaml").read_text())["env_vars"]["A"] == "b"
    assert main(["runtime-env", "--env", "A"]) == 2
    assert "verl-aer runtime-env: --env A" in capsys.readouterr().err


def test_what_veRL_sets_itself_is_known():
    assert len(SET_BY_VERL) == 8
