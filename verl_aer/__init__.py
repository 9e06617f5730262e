"""Adaptive Entropy Regularization (AER) and related methods for veRL.

The core (parts, methods, rollouts, config, control and kernels) does not import veRL, Ray or vLLM. Symbols and units:

    N      rows (trajectories) of a step, including padding
    P      prompts of a step; the rollouts of one prompt are its group
    T      tokens of a response, or of the rows in an average
    V      size of the vocabulary
    g      group accuracy, (P,) in [0, 1]: share of a prompt's rollouts that are correct
    w      allocation weight, (P,) or (N,), >= 0, no unit: a trajectory's share of alpha
    s      token weight of the token selection, (N, T), >= 0, mean 1 over a response
    alpha  global coefficient, loss units per nat; a negative alpha is a penalty on entropy
    H      entropy of a token's distribution at the sampling temperature, nats; H_t is its token mean in step t
    H0     token-mean entropy of the initial policy, nats per token
    H*     target level of H_t, nats per token
    m      response mask, (N, T): 1 on the tokens that the policy wrote

The loss is L = L_policy - alpha * agg(m * w * s * value(H)). Most methods have s = 1 and value(H) = H.
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_PUBLIC = {
    "config.schema": ("ConfigError", "EntropyConfig", "parse_entropy_config", "to_mapping"),
    "control.loop": ("ControlState", "Decision", "EntropyControl"),
    "control.state_file": ("StateError",),
    "errors": ("VerlAerError",),
    "methods.base": ("Method", "get_method", "method_names", "register_method"),
    "parts.advantage_shaping": ("AdvantageShaping",),
    "parts.allocation": ("Allocation",),
    "parts.base": ("UnknownNameError", "get_part", "part_names", "register_part"),
    "parts.controller": ("Controller", "Observation", "Output"),
    "parts.measure": ("Measure",),
    "parts.regularizer": ("Regularizer",),
    "parts.reward_shaping": ("RewardShaping",),
    "parts.target": ("Bounds", "Target"),
    "parts.token_selection": ("TokenSelection",),
    "rollouts.groups": ("Groups",),
    "rollouts.types": ("Rollouts", "Tokens"),
}
"""Public names of each module; ``__init__.pyi`` lists them for type checkers."""

_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    """Load a public name on its first use, because `verl-aer doctor` must run if torch is missing or broken."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
