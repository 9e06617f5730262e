"""Adaptive Entropy Regularization and its relatives for veRL.

The core (every module outside ``integration`` and ``cpu``) imports torch, numpy and omegaconf only and knows
nothing of veRL. Letters and units used throughout:

    N      trajectories (rows) of a step, padding rows included
    P      prompts of a step; the rollouts of one prompt are its *group*
    T      tokens: of a response, or of whatever is being averaged over
    V      vocabulary
    g      group accuracy, (P,) in [0, 1]: share of a prompt's rollouts that are correct
    w      allocation weight, (P,) or (N,), >= 0, no unit: a trajectory's share of alpha
    alpha  global coefficient, loss units per nat; >= 0 but for a schedule that says otherwise
    H      entropy of a token's distribution at the sampling temperature, nats; H_t its token mean in step t
    H0     token-mean entropy of the initial policy, nats per token
    H*     target level of H_t, nats per token
    m      response mask, (N, T): 1 on the tokens the policy wrote

The loss is L = L_policy - alpha * agg(m * w * s * value(H)), with s and value 1 and H for most methods.
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl_aer.public import (
        AdvantageShaping,
        Allocation,
        AllocationError,
        Bounds,
        ConfigError,
        Controller,
        ControlState,
        CorrectnessError,
        Decision,
        EntropyConfig,
        EntropyControl,
        Functional,
        Groups,
        Method,
        Penalty,
        Problem,
        QuestionMemory,
        RewardShaping,
        Rollouts,
        RunMemory,
        Selection,
        StateError,
        Target,
        Tokens,
        UnknownNameError,
        allocate,
        get_method,
        get_part,
        group_rows,
        load_run,
        method_names,
        parse_entropy_config,
        part_names,
        register_advantage_shaping,
        register_allocation,
        register_controller,
        register_functional,
        register_method,
        register_penalty,
        register_reward_shaping,
        register_selection,
        register_target,
        save_state,
        to_mapping,
    )

__version__ = "0.1.0"

__all__ = [
    "AdvantageShaping",
    "Allocation",
    "AllocationError",
    "Bounds",
    "ConfigError",
    "ControlState",
    "Controller",
    "CorrectnessError",
    "Decision",
    "EntropyConfig",
    "EntropyControl",
    "Functional",
    "Groups",
    "Method",
    "Penalty",
    "Problem",
    "QuestionMemory",
    "RewardShaping",
    "Rollouts",
    "RunMemory",
    "Selection",
    "StateError",
    "Target",
    "Tokens",
    "UnknownNameError",
    "allocate",
    "get_method",
    "get_part",
    "group_rows",
    "load_run",
    "method_names",
    "parse_entropy_config",
    "part_names",
    "register_advantage_shaping",
    "register_allocation",
    "register_controller",
    "register_functional",
    "register_method",
    "register_penalty",
    "register_reward_shaping",
    "register_selection",
    "register_target",
    "save_state",
    "to_mapping",
]


def __getattr__(name: str) -> object:
    """The public names, loaded on first use: `verl-aer doctor` has to run where torch is missing or broken."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_importlib.import_module("verl_aer.public"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
