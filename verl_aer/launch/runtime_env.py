"""Write a Ray runtime environment that ships this package and the user's packages to the nodes.

veRL does not pass PYTHONPATH and VERL_USE_EXTERNAL_MODULES to Ray's workers. A runtime environment reaches all of them:
`py_modules` ships the code, and VERL_USE_EXTERNAL_MODULES makes every process that imports veRL load the plug-in, which
has no entry point without an installation.
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
"""Variables that veRL's own runtime environment sets. Ray rejects a second value."""


def runtime_env_yaml(modules: Sequence[Path] = (), variables: Sequence[str] = ()) -> str:
    """Return the content of a file for `ray job submit --runtime-env`.

    Args:
        modules: folders of the user's packages, each of which is shipped and loaded with veRL.
        variables: `NAME=VALUE`, for every process on every node.

    Raises:
        InputError: a folder that is not a package, or a variable that cannot be set here.
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
        raise InputError(f"--module {folder}: not a package (a folder with an __init__.py)")
    return folder.resolve()


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InputError(f"--env {text}: write NAME=VALUE")
    if name in SET_BY_VERL:
        raise InputError(f"--env {name}: veRL sets it itself; set it on every node where Ray is started")
    return name, os.path.expandvars(value)
