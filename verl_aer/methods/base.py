"""The registry of methods: a method consists of its parts with its own defaults, and its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from verl_aer.parts.advantage_shaping import AdvantageShaping, NoAdvantageShaping
from verl_aer.parts.allocation import Allocation
from verl_aer.parts.base import look_up, refuse_another
from verl_aer.parts.controller import Controller
from verl_aer.parts.measure import Measure, Pushed, Same
from verl_aer.parts.regularizer import Bonus, Regularizer
from verl_aer.parts.reward_shaping import NoRewardShaping, RewardShaping
from verl_aer.parts.target import Target
from verl_aer.parts.token_selection import All, TokenSelection

Aggregation = Literal["token-mean", "seq-mean-token-mean", "same_as_policy_loss"]

PROVENANCES = ("published", "reimplementation", "baseline", "ablation", "custom")
"""How far a method's definition can be traced to its source; "custom" is for user-defined methods."""


@dataclass(frozen=True)
class Method:
    """An entropy-control method: its parts with the method's defaults.

    Args:
        allocation: an instance of a registered allocation; the other parts likewise.
        provenance: one of PROVENANCES.
        source: the paper or code that defines the method.
        summary: one line for listings.
        aggregation: ``token-mean`` divides the entropy term by all response tokens of the global mini-batch,
            regardless of the policy loss; ``seq-mean-token-mean`` averages over each response and then over
            responses; ``same_as_policy_loss`` uses the mode of the policy loss.
        verl: settings of veRL that belong to the method, by full key; its preset sets them.
        watch: the metrics that show whether the method works.
        differences: the differences from the source and their reasons; empty if there are none.
    """

    allocation: Allocation
    measure: Measure
    target: Target
    controller: Controller
    provenance: str
    source: str
    summary: str
    aggregation: Aggregation = "token-mean"
    verl: Mapping[str, Any] = field(default_factory=dict)
    watch: str = ""
    differences: str = ""
    pushed: Pushed = field(default_factory=Same)
    token_selection: TokenSelection = field(default_factory=All)
    regularizer: Regularizer = field(default_factory=Bonus)
    reward_shaping: RewardShaping = field(default_factory=NoRewardShaping)
    advantage_shaping: AdvantageShaping = field(default_factory=NoAdvantageShaping)

    def __post_init__(self) -> None:
        if self.provenance not in PROVENANCES:
            raise ValueError(f"provenance must be one of {', '.join(PROVENANCES)}, got {self.provenance!r}")


_methods: dict[str, Callable[[], Method]] = {}


def register_method(name: str) -> Callable[[Callable[[], Method]], Callable[[], Method]]:
    """Register a function that builds the method ``+entropy=<name>``; its docstring has the formula and source."""

    def register(build: Callable[[], Method]) -> Callable[[], Method]:
        refuse_another(_methods, "method", name, build)
        _methods[name] = build
        return build

    return register


def get_method(name: str) -> Method:
    """Build the method registered as ``name``; UnknownNameError lists the known ones."""
    return method_builder(name)()


def method_builder(name: str) -> Callable[[], Method]:
    """Return the function registered as ``name``; its docstring has the formula and source."""
    return look_up(_methods, "method", name)


def method_names() -> list[str]:
    """List the registered methods, sorted."""
    return sorted(_methods)
