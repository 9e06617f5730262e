"""`examples/ray_cluster/rayjob.yaml` as veRL and Ray read it; its other facts are in `tests/unit/test_rayjob.py`."""

from __future__ import annotations

import pytest
from ray.runtime_env import RuntimeEnv

from tests.unit.test_rayjob import overrides, runtime_env
from verl_aer.doctor import OK, config_checks


def test_the_entrypoint_composes_and_has_no_problem():
    checks = config_checks(overrides(), "aer_trainer", "pkg://verl_aer.config", elsewhere=True)
    assert [check for check in checks if check.status != OK] == []


def test_ray_accepts_the_runtime_environment():
    assert RuntimeEnv(**runtime_env()).env_vars() == runtime_env()["env_vars"]
    with pytest.raises(TypeError, match="env_vars"):
        RuntimeEnv(env_vars={"PYTHONUNBUFFERED": 1})


def test_verl_sets_no_variable_that_the_runtime_environment_sets(monkeypatch):
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    # Ray refuses a job whose driver names a variable again, also with the same value.
    ours = runtime_env()
    for name, value in ours["env_vars"].items():
        monkeypatch.setenv(name, value)
    verls = get_ppo_ray_runtime_env()
    assert not verls["env_vars"].keys() & ours["env_vars"].keys()
    assert verls.keys() & ours.keys() <= {"env_vars"}
