"""The public names of `verl_aer` and the registration of its methods: imported on the first use of either."""

# Imported to be found here by name: the list of public names is that of the package itself.
# ruff: noqa: F401

from verl_aer.advantage_shaping import AdvantageShaping
from verl_aer.allocation import Allocation, AllocationError, allocate
from verl_aer.config.schema import ConfigError, EntropyConfig, Problem, parse_entropy_config, to_mapping
from verl_aer.control.loop import ControlState, Decision, EntropyControl
from verl_aer.control.state_file import RunMemory, StateError, load_run, save_state
from verl_aer.controller import Controller
from verl_aer.functional import Functional
from verl_aer.methods import (
    aent,
    aer,
    agents,
    anchoring,
    baselines,
    ceeh,
    feedback,
    shaping,
    verls_own,
)
from verl_aer.methods.registry import (
    Method,
    UnknownNameError,
    get_method,
    get_part,
    method_names,
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
)
from verl_aer.penalty import Penalty
from verl_aer.reward_shaping import RewardShaping
from verl_aer.rollouts.groups import CorrectnessError, Groups, group_rows
from verl_aer.rollouts.question_memory import QuestionMemory
from verl_aer.rollouts.types import Rollouts, Tokens
from verl_aer.selection import Selection
from verl_aer.target import Bounds, Target
