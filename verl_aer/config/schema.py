"""The ``entropy`` node of a run's config: parses a mapping into typed parts and reports all problems at once.

entropy.method                                       a registered method; its parts are the defaults
entropy.{allocation,measure,pushed,token_selection,  {kind: <registered part>, <the part's settings>}
  target,controller,regularizer,reward_shaping,
  advantage_shaping}
entropy.aggregation                                  token-mean | seq-mean-token-mean | same_as_policy_loss
entropy.correctness                                  {reward_key, threshold, on_missing}
entropy.question_memory                              {question_key, max_questions, ema_up, ema_down}
entropy.on_missing_state                             error | restart
entropy.watchdog                                     {weight_sync_timeout_s, rollout_timeout_s}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, Literal, NamedTuple, TypeVar

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, ValidationError

from verl_aer._settings import Settings, allowed_values, bounds, may_be_null, setting_names, shown
from verl_aer.errors import VerlAerError
from verl_aer.methods.base import Aggregation, Method, get_method, method_names
from verl_aer.parts.advantage_shaping import AdvantageShaping
from verl_aer.parts.allocation import Allocation
from verl_aer.parts.base import ROLES, Part, get_part, part_names, suggestion
from verl_aer.parts.controller import Controller
from verl_aer.parts.measure import Measure, Pushed
from verl_aer.parts.regularizer import Regularizer
from verl_aer.parts.reward_shaping import RewardShaping
from verl_aer.parts.target import Target
from verl_aer.parts.token_selection import TokenSelection
from verl_aer.rollouts.groups import CorrectnessConfig
from verl_aer.rollouts.question_memory import QuestionMemoryConfig

SomeSettings = TypeVar("SomeSettings", bound=Settings)

_NOUNS = {"pushed": "measure"}
"""Nouns for parts in messages, if the key is not a noun."""


def measures_responses(aggregation: str) -> bool:
    """Tell whether the controlled entropy is a mean over responses and not over tokens."""
    return aggregation == "seq-mean-token-mean"


class Problem(NamedTuple):
    """One problem of the config: the full key, the message and the fix."""

    key: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}. {self.fix}".rstrip()


class ConfigError(VerlAerError, ValueError):
    """All problems of a config; ``str()`` numbers them."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"  {number}. {problem}" for number, problem in enumerate(problems, start=1)]
        super().__init__("\n".join([f"the entropy control found {count} in the config:", *lines]))


class WatchdogConfig(Settings):
    """Time limits of the watchdog, which stops a run without progress."""

    weight_sync_timeout_s: float | None = Field(default=None, gt=0)
    """Stop the run if a weight update takes longer than this many seconds; null uses
    ``actor_rollout_ref.nccl_timeout``."""
    rollout_timeout_s: float | None = Field(default=3600.0, gt=0)
    """Stop the run if no rollout finishes for this many seconds while the trainer waits; null disables the check."""


class EntropyConfig(Settings):
    """The parsed ``entropy`` node; the parts are instances of registered classes."""

    method: str
    allocation: Allocation
    measure: Measure
    pushed: Pushed
    token_selection: TokenSelection
    target: Target
    controller: Controller
    regularizer: Regularizer
    reward_shaping: RewardShaping
    advantage_shaping: AdvantageShaping
    aggregation: Aggregation = "token-mean"
    """Average of the entropy term: ``token-mean`` averages over all response tokens of the mini-batch, regardless of
    the policy loss; ``seq-mean-token-mean`` averages over each response and then over responses;
    ``same_as_policy_loss`` uses ``loss_agg_mode``."""
    correctness: CorrectnessConfig = CorrectnessConfig()
    """Rule for correct rollouts, for group accuracy."""
    question_memory: QuestionMemoryConfig = QuestionMemoryConfig()
    """Accuracy of each question across steps, for methods that need it."""
    on_missing_state: Literal["error", "restart"] = "error"
    """Action on resume without a usable controller state: ``error`` stops the run, ``restart`` restarts the
    controller."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """Time limits after which a run without progress is stopped, with the cause and the last good checkpoint."""

    @property
    def pushed_measure(self) -> Measure:
        """The measure that the loss pushes; the controller gets ``measure``."""
        return self.pushed if isinstance(self.pushed, Measure) else self.measure

    @property
    def uses_questions(self) -> bool:
        """Whether a part uses the history of each question."""
        return self.allocation.uses_questions or self.reward_shaping.uses_questions

    @property
    def uses_accuracy(self) -> bool:
        """Whether a part uses the correctness of rollouts."""
        parts = (self.allocation, self.reward_shaping, self.advantage_shaping)
        # The history of a question holds its accuracy.
        return self.uses_questions or any(part.uses_accuracy for part in parts)

    @property
    def has_shaping_without_alpha(self) -> bool:
        """Whether rewards or advantages are shaped independently of alpha."""
        shaping = self.advantage_shaping
        return self.reward_shaping.changes or (shaping.shapes and not shaping.uses_alpha)

    def resolve(self, total_steps: int) -> EntropyConfig:
        """Set the length of the run, in global steps, in the parts that leave it open."""
        told = {
            role: getattr(self, role).model_copy(update={"total_steps": total_steps})
            for role in ROLES
            if getattr(getattr(self, role), "total_steps", 0) is None
        }
        return self.model_copy(update=told)


def parse_entropy_config(node: Mapping[str, Any] | DictConfig) -> EntropyConfig:
    """Parse the ``entropy`` node.

    Settings that are not given have the method's values. If the node chooses another part than the method does, they
    have the defaults of that part.

    Args:
        node: a plain mapping or an OmegaConf node.

    Raises:
        ConfigError: names all unknown keys, parts and methods, wrong types, values out of bounds and contradictory
            combinations.

    >>> config = parse_entropy_config({"method": "aer", "target": {"tau": 0.5}})
    >>> config.target, config.controller.ki
    (Anchored(tau=0.5, initial_entropy=None, anchor_steps=1), 0.05)
    >>> parse_entropy_config({"method": "aer", "allocation": {"rho": 0.0}})
    Traceback (most recent call last):
    verl_aer.config.schema.ConfigError: the entropy control found 1 problem in the config:
      1. entropy.allocation.rho: must be > 0, got 0.0. Set entropy.allocation.rho to a value > 0, such as 0.5.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    problems: list[Problem] = []
    if not _is_mapping("entropy", plain, problems):
        raise ConfigError(problems)
    names = setting_names(EntropyConfig)
    problems += _unknown_keys("entropy", plain, names)
    method = _method(plain, problems)
    values: dict[str, Any] = {role: _part(role, plain.get(role, {}), method, problems) for role in ROLES}
    for name, defaults in COMMON_SETTINGS.items():
        values[name] = _settings(f"entropy.{name}", defaults, plain.get(name, {}), problems)
    problems += _problems_together(values)
    rest = {name: plain[name] for name in names if name in plain and name not in values}
    if method is not None:
        rest.setdefault("aggregation", method.aggregation)
    config = _validated(EntropyConfig, "entropy", {**rest, **values}, problems, known={*values, "method"})
    if config is None or problems:
        raise ConfigError(problems)
    return config


def to_mapping(config: EntropyConfig) -> dict[str, Any]:
    """Convert the config to a mapping with every setting, as plain dicts and scalars.

    This is the inverse of ``parse_entropy_config``.
    """
    return {name: _plain(getattr(config, name)) for name in setting_names(EntropyConfig)}


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_mapping()
    return value.model_dump() if isinstance(value, Settings) else value


COMMON_SETTINGS = {
    "correctness": CorrectnessConfig(),
    "question_memory": QuestionMemoryConfig(),
    "watchdog": WatchdogConfig(),
}
"""Defaults of the settings that all methods have, by key."""


def _is_mapping(key: str, node: Any, problems: list[Problem]) -> bool:
    if isinstance(node, Mapping):
        return True
    problems.append(Problem(key, f"must be a mapping, got {node!r}", f"Set its keys: {key}.<key>=<value>."))
    return False


def _method(node: Mapping[str, Any], problems: list[Problem]) -> Method | None:
    name, known = node.get("method"), ", ".join(method_names())
    if name in method_names():
        return get_method(str(name))
    if "method" not in node:
        problems.append(Problem("entropy.method", "is missing", f"Set entropy.method to one of: {known}."))
    else:
        close = suggestion(str(name), method_names())
        problems.append(Problem("entropy.method", f"no method is named {name!r}{close}", f"Set it to one of: {known}."))
    return None


def _part(role: str, node: Any, method: Method | None, problems: list[Problem]) -> Part | None:
    key = f"entropy.{role}"
    if not _is_mapping(key, node, problems):
        return None
    default = None if method is None else getattr(method, role)
    # Without a known method, a part without a kind has no default. The missing method is already a problem.
    kind = node.get("kind", None if default is None else default.kind)
    if kind is None and "kind" not in node:
        return None
    if kind not in part_names(role):
        problems.append(
            Problem(
                f"{key}.kind",
                f"no {_NOUNS.get(role, role)} is named {kind!r}{suggestion(str(kind), part_names(role))}",
                f"Set it to one of: {', '.join(part_names(role))}. A user-defined part is known after its module is "
                "imported (VERL_USE_EXTERNAL_MODULES=<module>).",
            )
        )
        return None
    part = get_part(role, kind)
    settings = {name: value for name, value in node.items() if name != "kind"}
    problems += _settings_of_others(role, part, settings)
    base = default.model_dump() if default is not None and default.kind == kind else {}
    known = {name: value for name, value in settings.items() if name in setting_names(part)}
    return _validated(part, key, {**base, **known}, problems)


def _settings(key: str, defaults: SomeSettings, node: Any, problems: list[Problem]) -> SomeSettings | None:
    if not _is_mapping(key, node, problems):
        return None
    names = setting_names(type(defaults))
    problems += _unknown_keys(key, node, names)
    return _validated(type(defaults), key, {name: node[name] for name in names if name in node}, problems)


def _validated(
    model: type[SomeSettings],
    key: str,
    values: Mapping[str, Any],
    problems: list[Problem],
    known: Set[str] = frozenset(),
) -> SomeSettings | None:
    """Validate the settings. If they have problems, append these, except for ``known`` names, and return None."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            name = str(detail["loc"][0])
            if name not in known and name in model.model_fields:
                problems.append(_problem(model, f"{key}.{name}", name, values.get(name), detail))
        return None


def _problem(model: type[Settings], key: str, name: str, value: Any, detail: Mapping[str, Any]) -> Problem:
    """Convert pydantic's error for one setting to a Problem."""
    kind, limits = detail["type"], bounds(model, name)
    default = model.model_fields[name].get_default(call_default_factory=True)
    example = shown(default)
    if kind == "missing":
        return Problem(key, "is missing", f"Set {key} to {allowed_values(model, name)}.")
    if kind == "value_error":
        requirement = str(detail["ctx"]["error"])
        return Problem(key, f"must be {requirement}, got {value!r}", f"Set {key} to a value {requirement}.")
    if kind in _BOUNDS:
        if not may_be_null(model, name):
            fix = f"Set {key} to a value {limits}, such as {example}."
            return Problem(key, f"must be {limits}, got {value!r}", fix)
        return Problem(key, f"must be null or {limits}, got {value!r}", f"Set {key} to a value {limits}, or to null.")
    if kind == "literal_error":
        return Problem(key, f"must be {allowed_values(model, name)}, got {value!r}", f"Set {key}={example}.")
    fix = f"Set {key} to a valid value, for example {example}."
    if value is None:
        return Problem(key, "must not be null", fix)
    if kind == "finite_number":
        return Problem(key, f"must be a finite number, got {value!r}", fix)
    return Problem(key, f"must be {allowed_values(model, name)}, got {value!r} ({type(value).__name__})", fix)


_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
"""pydantic's error types for a number out of bounds."""


def _unknown_keys(key: str, node: Mapping[str, Any], known: list[str]) -> Iterator[Problem]:
    for name in node:
        if name not in known:
            yield Problem(
                f"{key}.{name}",
                f"is not a known key{suggestion(str(name), known)}; known: {', '.join(known)}",
                f"Correct its name, or remove it with the override ~{key}.{name}.",
            )


def _settings_of_others(role: str, part: type[Part], settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Find settings that ``part`` does not have: they belong to another part of its role, or are misspelled."""
    known = setting_names(part)
    for name in settings:
        if name in known:
            continue
        key = f"entropy.{role}.{name}"
        owners = [other for other in part_names(role) if name in setting_names(get_part(role, other))]
        part_is = f"{_NOUNS.get(role, role)} {part.kind!r}"
        message = f"is not a setting of the {part_is}, which has {', '.join(known) if known else 'no settings'}"
        if owners:
            yield Problem(
                key,
                f"{message}; it belongs to {' and '.join(map(repr, owners))}",
                f"Choose the part with entropy/{role}={part.kind}, which removes the settings of the other part, or "
                f"remove this setting with ~{key}.",
            )
        else:
            fix = f"Correct its name, or remove it with the override ~{key}."
            yield Problem(key, f"{message}{suggestion(str(name), known)}", fix)


def _problems_together(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Find parts that cannot be combined."""
    target, controller, regularizer = parts["target"], parts["controller"], parts["regularizer"]
    measure, pushed = parts["measure"], parts["pushed"]
    if target is not None and target.kind == "none":
        if controller is not None and controller.uses_target:
            yield Problem(
                "entropy.target.kind",
                f"the controller {controller.kind!r} needs a target, but entropy.target.kind=none",
                "Set entropy/target=anchored or entropy/target=absolute, or entropy/controller=fixed.",
            )
        if regularizer is not None and regularizer.uses_target:
            yield Problem(
                "entropy.target.kind",
                f"the regularizer {regularizer.kind!r} needs a target, but entropy.target.kind=none",
                "Set entropy/target to anchored, absolute, band or history, or set entropy/regularizer=bonus.",
            )
    if measure is None or pushed is None or regularizer is None or not regularizer.uses_target:
        return
    if pushed.kind != "same" and pushed != measure:
        yield Problem(
            "entropy.pushed.kind",
            f"the regularizer {regularizer.kind!r} needs the same pushed and measured entropy, because its target is "
            f"that of the measured one; got the pushed entropy {pushed.kind!r} and the measure {measure.kind!r}",
            "Set entropy/pushed=same, or entropy/regularizer=bonus.",
        )
