"""The public names of `verl_aer` and the registration of its methods: imported on the first use of either."""

from verl_aer.allocation import Allocation, AllocationError, allocate
from verl_aer.config.schema import ConfigError, EntropyConfig, Problem, parse_entropy_config, to_mapping
from verl_aer.control import ControlState, Decision, EntropyControl
from verl_aer.controller import Controller
from verl_aer.correctness import CorrectnessError, Groups, group_rows, trajectory_correctness
from verl_aer.functional import Functional
from verl_aer.methods import (
    aer,  # noqa: F401 - registers the methods
    baselines,  # noqa: F401 - registers the methods
)
from verl_aer.methods.registry import (
    Method,
    UnknownNameError,
    get_method,
    get_part,
    method_names,
    part_names,
    register_allocation,
    register_controller,
    register_functional,
    register_method,
    register_target,
)
from verl_aer.state import StateError, load_state, save_state
from verl_aer.target import Target

__all__ = [
    "Allocation",
    "AllocationError",
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
    "Problem",
    "StateError",
    "Target",
    "UnknownNameError",
    "allocate",
    "get_method",
    "get_part",
    "group_rows",
    "load_state",
    "method_names",
    "parse_entropy_config",
    "part_names",
    "register_allocation",
    "register_controller",
    "register_functional",
    "register_method",
    "register_target",
    "save_state",
    "to_mapping",
    "trajectory_correctness",
]
