"""The registry of parts and methods, and one file for each family of registered methods."""

from verl_aer.methods.registry import (
    PART_KINDS,
    Method,
    Part,
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

# The methods themselves (aer.py, baselines.py) are imported by the package's own __init__: they import the
# parts, and the parts import the registry from here.
__all__ = [
    "PART_KINDS",
    "Method",
    "Part",
    "UnknownNameError",
    "get_method",
    "get_part",
    "method_names",
    "part_names",
    "register_allocation",
    "register_controller",
    "register_functional",
    "register_method",
    "register_target",
]
