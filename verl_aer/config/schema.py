"""The ``entropy`` node of a run's config: from a mapping to typed parts, every problem at once.

entropy.method                                       a registered method; its parts are the defaults
entropy.{allocation,measure,pushed,token_selection,     {kind: <registered part>, <the part's fields>}
  target,controller,regularizer,reward_shaping,
  advantage_shaping}
entropy.aggregation                                  token-mean | seq-mean-token-mean | same_as_policy_loss
entropy.correctness                                  {reward_key, threshold, on_missing}
entropy.question_memory                                       {question_key, max_questions, ema_up, ema_down}
entropy.on_missing_state                             error | restart
entropy.watchdog                                       {weight_sync_timeout_s, rollout_timeout_s}
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from omegaconf import DictConfig, OmegaConf

from verl_aer.errors import VerlAerError
from verl_aer.methods.base import Method, get_method, method_names
from verl_aer.parts.base import ROLES, get_part, part_names, suggestion
from verl_aer.parts.measure import Measure
from verl_aer.rollouts.groups import CorrectnessConfig
from verl_aer.rollouts.question_memory import QuestionMemoryConfig

Settings = TypeVar("Settings")

_NOUNS = {"pushed": "measure"}
"""What a part is called where its key is no noun."""

AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "same_as_policy_loss")
ON_MISSING_STATE = ("error", "restart")


def measures_responses(aggregation: str) -> bool:
    """Whether the controlled entropy is a mean over responses, of which each counts alike, and not over tokens."""
    return aggregation == "seq-mean-token-mean"


class Problem(NamedTuple):
    """One thing wrong with the config: the full key, what is wrong with it, and what to do."""

    key: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}. {self.fix}".rstrip()


class ConfigError(VerlAerError, ValueError):
    """Every problem of a config; ``str()`` numbers them."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"  {number}. {problem}" for number, problem in enumerate(problems, start=1)]
        super().__init__("\n".join([f"the entropy control found {count} in the config:", *lines]))


@dataclass
class WatchdogConfig:
    """After how long without progress a run is stopped, instead of waiting for ever.

    Args:
        weight_sync_timeout_s: seconds that a weight update may take, > 0; null takes
            ``actor_rollout_ref.nccl_timeout``.
        rollout_timeout_s: seconds in which no rollout was finished while the trainer waited for some, > 0; null
            waits for ever.
    """

    weight_sync_timeout_s: float | None = None
    rollout_timeout_s: float | None = 3600.0

    def problems(self) -> list[tuple[str, str]]:
        return [(name, "> 0") for name, limit in dataclasses.asdict(self).items() if limit is not None and limit <= 0]


@dataclass
class EntropyConfig:
    """The parsed ``entropy`` node; the parts are instances of registered dataclasses.

    Args:
        aggregation: what the entropy term is averaged over: ``token-mean``, all response tokens of the mini-batch
            whatever the policy loss does; ``seq-mean-token-mean``, each response, then the responses;
            ``same_as_policy_loss``, what ``loss_agg_mode`` says.
        correctness: which rollouts are correct, for group accuracy.
        question_memory: what is remembered of each question, by methods that need it.
        on_missing_state: what to do on resume without a usable state of the controller: stop with an ``error``, or
            ``restart`` the controller.
        watchdog: when a run that makes no progress is stopped, with the cause and the last good checkpoint.
    """

    method: str
    allocation: Any
    measure: Any
    pushed: Any
    token_selection: Any
    target: Any
    controller: Any
    regularizer: Any
    reward_shaping: Any
    advantage_shaping: Any
    aggregation: str = "token-mean"
    correctness: CorrectnessConfig = field(default_factory=CorrectnessConfig)
    question_memory: QuestionMemoryConfig = field(default_factory=QuestionMemoryConfig)
    on_missing_state: str = "error"
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)

    @property
    def pushed_measure(self) -> Measure:
        """What the loss pushes; ``measure`` is what the controller is given."""
        return self.measure if self.pushed.kind == "same" else self.pushed

    @property
    def uses_questions(self) -> bool:
        """Whether a part asks for what is remembered of each question."""
        return self.allocation.uses_questions or self.reward_shaping.uses_questions

    @property
    def uses_accuracy(self) -> bool:
        """Whether a part asks for which rollouts are correct."""
        parts = (self.allocation, self.reward_shaping, self.advantage_shaping)
        # What is remembered of a question is its accuracy.
        return self.uses_questions or any(part.uses_accuracy for part in parts)

    @property
    def has_shaping_without_alpha(self) -> bool:
        """Whether rewards or advantages are shaped by something else than alpha."""
        shaping = self.advantage_shaping
        return self.reward_shaping.changes or (shaping.shapes and not shaping.uses_alpha)

    def resolve(self, total_steps: int) -> EntropyConfig:
        """These settings for a run of so many global steps: parts that left that to the run are told."""
        told = {
            part: dataclasses.replace(getattr(self, part), total_steps=total_steps)
            for part in ROLES
            if getattr(getattr(self, part), "total_steps", 0) is None
        }
        return dataclasses.replace(self, **told)


def parse_entropy_config(node: Mapping[str, Any] | DictConfig) -> EntropyConfig:
    """The ``entropy`` node as an EntropyConfig.

    What the node leaves out is the method's own value, or the part's default where the node chooses another
    part than the method does.

    Args:
        node: a plain mapping or an OmegaConf node.

    Raises:
        ConfigError: names every unknown key, part and method, every wrong type and value out of bounds, and
            combinations that contradict each other.

    >>> config = parse_entropy_config({"method": "aer", "target": {"tau": 0.5}})
    >>> config.target, config.controller.ki
    (Anchored(tau=0.5, initial_entropy=None, anchor_steps=1), 0.05)
    >>> parse_entropy_config({"method": "aer", "allocation": {"rho": 0.0}})
    Traceback (most recent call last):
    verl_aer.config.schema.ConfigError: the entropy control found 1 problem in the config:
      1. entropy.allocation.rho: must be > 0, got 0.0. Set entropy.allocation.rho to a value > 0, such as 0.5.
    """
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=True)
    return _Parser().parse(node)


def to_mapping(config: EntropyConfig) -> dict[str, Any]:
    """The inverse of ``parse_entropy_config``: every setting spelt out, plain dicts and scalars only."""
    parts = {}
    for part in ROLES:
        settings = getattr(config, part)
        parts[part] = {"kind": settings.kind, **dataclasses.asdict(settings)}
    return {
        "method": config.method,
        **parts,
        "aggregation": config.aggregation,
        "correctness": dataclasses.asdict(config.correctness),
        "question_memory": dataclasses.asdict(config.question_memory),
        "on_missing_state": config.on_missing_state,
        "watchdog": dataclasses.asdict(config.watchdog),
    }


class _Parser:
    """Collects problems while it builds; what fails is None, and checks that would need it are left out."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def parse(self, node: Any) -> EntropyConfig:
        if not self._is_mapping("entropy", node):
            raise ConfigError(self.problems)
        self._refuse_unknown_keys("entropy", node, [f.name for f in dataclasses.fields(EntropyConfig)])
        method = self._method(node)
        parts = {
            part: self._part(part, node.get(part, {}), None if method is None else getattr(method, part))
            for part in ROLES
        }
        self._check_together(parts["target"], parts["controller"], parts["regularizer"])
        self._check_pushed(parts["measure"], parts["pushed"], parts["regularizer"])
        aggregation = node.get("aggregation", "token-mean" if method is None else method.aggregation)
        self._check_choice("entropy.aggregation", aggregation, AGGREGATIONS)
        on_missing_state = node.get("on_missing_state", "error")
        self._check_choice("entropy.on_missing_state", on_missing_state, ON_MISSING_STATE)
        correctness = self._settings("entropy.correctness", CorrectnessConfig(), node.get("correctness", {}))
        question_memory = self._settings(
            "entropy.question_memory", QuestionMemoryConfig(), node.get("question_memory", {})
        )
        watchdog = self._settings("entropy.watchdog", WatchdogConfig(), node.get("watchdog", {}))
        if self.problems:
            raise ConfigError(self.problems)
        return EntropyConfig(
            method=node["method"],
            **parts,
            aggregation=aggregation,
            correctness=correctness,
            question_memory=question_memory,
            on_missing_state=on_missing_state,
            watchdog=watchdog,
        )

    def _add(self, key: str, message: str, fix: str) -> None:
        self.problems.append(Problem(key, message, fix))

    def _is_mapping(self, key: str, node: Any) -> bool:
        if not isinstance(node, Mapping):
            self._add(key, f"must be a mapping, got {node!r}", f"Set the keys below it, as {key}.<key>=<value>.")
            return False
        return True

    def _check_choice(self, key: str, value: Any, choices: tuple[str, ...]) -> None:
        if value not in choices:
            names = ", ".join(choices[:-1]) + f" or {choices[-1]}"
            self._add(key, f"must be {names}, got {value!r}", f"Set {key}={choices[0]}.")

    def _refuse_unknown_keys(self, prefix: str, node: Mapping[str, Any], known: list[str]) -> None:
        for key in node:
            if key not in known:
                self._add(
                    f"{prefix}.{key}",
                    f"is not a known key{suggestion(str(key), known)}; known: {', '.join(known)}",
                    f"Remove it with the override ~{prefix}.{key}, or correct its name.",
                )

    def _method(self, node: Mapping[str, Any]) -> Method | None:
        known = ", ".join(method_names())
        if "method" not in node:
            self._add("entropy.method", "is missing", f"Set entropy.method to one of: {known}.")
            return None
        if node["method"] not in method_names():
            close = suggestion(str(node["method"]), method_names())
            self._add(
                "entropy.method",
                f"no method is named {node['method']!r}{close}",
                f"Set it to one of: {known}.",
            )
            return None
        return get_method(node["method"])

    def _part(self, part: str, node: Any, default: Any | None) -> Any | None:
        prefix = f"entropy.{part}"
        if not self._is_mapping(prefix, node):
            return None
        if "kind" in node:
            kind = node["kind"]
        elif default is not None:
            kind = default.kind
        else:
            # Without a known method there is no default to fall back on; the method's own problem says so.
            return None
        if kind not in part_names(part):
            self._add(
                f"{prefix}.kind",
                f"no {_NOUNS.get(part, part)} is named {kind!r}{suggestion(str(kind), part_names(part))}",
                f"Set it to one of: {', '.join(part_names(part))}; a part of your own is known once its "
                "module is imported (VERL_USE_EXTERNAL_MODULES=<module>).",
            )
            return None
        cls = get_part(part, kind)
        base = default if default is not None and default.kind == kind else cls()
        settings = {key: value for key, value in node.items() if key != "kind"}
        self._refuse_settings_of_others(part, kind, settings)
        built, bad = self._fill(prefix, base, settings)
        self._check_bounds(prefix, built, bad)
        return None if bad else built

    def _check_bounds(self, prefix: str, built: Any, bad: set[str]) -> None:
        for name, requirement in built.problems():
            # A bound that refers to a value of a wrong type would be checked against its default: not a
            # finding.
            if name not in bad and not any(other in requirement for other in bad):
                default = getattr(type(built)(), name)
                self._add_out_of_bounds(f"{prefix}.{name}", getattr(built, name), requirement, default)

    def _add_out_of_bounds(self, key: str, value: Any, requirement: str, default: Any) -> None:
        self._add(
            key,
            f"must be {requirement}, got {value!r}",
            f"Set {key} to a value {requirement}, such as {_shown(default)}.",
        )

    def _refuse_settings_of_others(self, part: str, kind: str, settings: Mapping[str, Any]) -> None:
        own = _field_names(get_part(part, kind))
        for key in settings:
            if key in own:
                continue
            full = f"entropy.{part}.{key}"
            owners = [other for other in part_names(part) if key in _field_names(get_part(part, other))]
            settings_of = f"{_NOUNS.get(part, part)} {kind!r}"
            what = f"is not a setting of the {settings_of}, which has {', '.join(own) if own else 'none'}"
            if owners:
                self._add(
                    full,
                    f"{what}; it belongs to {' and '.join(map(repr, owners))}",
                    f"Choose the part with entropy/{part}={kind}, which leaves no settings of another part, or remove "
                    f"this one with ~{full}.",
                )
            else:
                self._add(
                    full,
                    f"{what}{suggestion(str(key), own)}",
                    f"Remove it with the override ~{full}, or correct it.",
                )

    def _fill(self, prefix: str, base: Any, settings: Mapping[str, Any]) -> tuple[Any, set[str]]:
        """``base`` with those ``settings`` whose types are right, and the names of the others."""
        hints = typing.get_type_hints(type(base))
        values, bad = {}, set()
        for name in _field_names(type(base)):
            if name not in settings:
                continue
            value, complaint = _typed(settings[name], hints[name])
            if complaint:
                self._add(
                    f"{prefix}.{name}",
                    complaint,
                    f"Set {prefix}.{name} to such a value, for example {_shown(getattr(base, name))}.",
                )
                bad.add(name)
            else:
                values[name] = value
        return dataclasses.replace(base, **values), bad

    def _settings(self, prefix: str, defaults: Settings, node: Any) -> Settings | None:
        if not self._is_mapping(prefix, node):
            return None
        self._refuse_unknown_keys(prefix, node, _field_names(type(defaults)))
        built, bad = self._fill(prefix, defaults, node)
        self._check_bounds(prefix, built, bad)
        return built

    def _check_together(self, target: Any | None, controller: Any | None, regularizer: Any | None) -> None:
        if target is None or controller is None or regularizer is None:
            return
        if controller.uses_target and target.kind == "none":
            self._add(
                "entropy.target.kind",
                f"the controller {controller.kind!r} steers towards a target and there is none",
                "Set entropy/target=anchored or entropy/target=absolute, or entropy/controller=fixed.",
            )
        if regularizer.uses_target and target.kind == "none":
            self._add(
                "entropy.target.kind",
                f"the regularizer {regularizer.kind!r} draws towards a target and there is none",
                "Set entropy/target to anchored, absolute, band or history, or set entropy/regularizer=bonus.",
            )

    def _check_pushed(self, measure: Any | None, pushed: Any | None, regularizer: Any | None) -> None:
        if measure is None or pushed is None or regularizer is None:
            return
        if regularizer.uses_target and pushed.kind != "same" and pushed != measure:
            self._add(
                "entropy.pushed.kind",
                f"the regularizer {regularizer.kind!r} draws the pushed entropy, {pushed.kind!r}, towards a target of "
                f"the measured one, {measure.kind!r}",
                "Set entropy/pushed=same, or entropy/regularizer=bonus.",
            )


def _field_names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _typed(value: Any, hint: Any) -> tuple[Any, str]:
    """``value`` as the field's type, or what it must be instead."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None:
        return None, "" if type(None) in options else "must not be null"
    (wanted,) = [option for option in options if option is not type(None)]
    if wanted is float and type(value) in (int, float):
        return float(value), "" if math.isfinite(value) else f"must be a finite number, got {value!r}"
    if type(value) is wanted:
        return value, ""
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a name"}
    article = f"{names[wanted]}{' or null' if len(options) > 1 else ''}"
    return None, f"must be {article}, got {value!r} ({type(value).__name__})"
