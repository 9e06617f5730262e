"""A runtime environment of Ray that brings this package, and the user's own, to nodes that lack them.

veRL hands neither PYTHONPATH nor VERL_USE_EXTERNAL_MODULES on to Ray's workers. A runtime environment reaches all of
them: `py_modules` brings the code, and VERL_USE_EXTERNAL_MODULES has every process that imports veRL load the plug-in,
which without an installation has no entry point.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

import verl_aer
from verl_aer.errors import InputError

PLUGIN = "verl_aer.integration.plugin"
SET_BY_VERL = (
    "VERL_FULL_DETERMINISM",
    "VLLM_BATCH_INVARIANT",
    "VERL_RL_INSIGHT_ENABLE",
    "PYTHONHASHSEED",
    "CUBLAS_WORKSPACE_CONFIG",
    "FLASH_ATTENTION_DETERMINISTIC",
    "NCCL_DETERMINISTIC",
    "NCCL_ALGO",
)
"""What veRL's own runtime environment always sets, or sets again where it is set: Ray refuses to be told twice."""


def runtime_env_yaml(modules: Sequence[Path] = (), variables: Sequence[str] = ()) -> str:
    """The text of a file for `ray job submit --runtime-env`.

    Args:
        modules: folders of the user's packages, each of which is carried and loaded with veRL.
        variables: `NAME=VALUE`, for every process on every node.

    Raises:
        InputError: a folder that is no package, or a variable that cannot be set so.
    """
    folders = [Path(verl_aer.__file__).parent, *(_package(module) for module in modules)]
    loaded = [PLUGIN, *(folder.name for folder in folders[1:])]
    environment = dict(map(_variable, variables))
    own = environment.get("VERL_USE_EXTERNAL_MODULES", "")
    environment["VERL_USE_EXTERNAL_MODULES"] = ",".join([*loaded, *filter(None, own.split(","))])
    described = {
        "py_modules": [str(folder) for folder in folders],
        "excludes": ["__pycache__"],
        "env_vars": environment,
    }
    return yaml.safe_dump(described, sort_keys=False)


def _package(folder: Path) -> Path:
    if not (folder / "__init__.py").is_file():
        raise InputError(f"--module {folder}: no package (a folder with an __init__.py)")
    return folder.resolve()


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InputError(f"--env {text}: write NAME=VALUE")
    if name in SET_BY_VERL:
        raise InputError(f"--env {name}: veRL sets it itself; set it where Ray is started, on every node")
    return name, os.path.expandvars(value)
