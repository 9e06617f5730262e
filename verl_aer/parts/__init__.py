"""The parts that a method is composed of, one module for each role. Importing the package registers all of them."""

# ruff: noqa: F401
from verl_aer.parts import (
    advantage_shaping,
    allocation,
    controller,
    measure,
    regularizer,
    reward_shaping,
    target,
    token_selection,
)
