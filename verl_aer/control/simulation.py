"""Synthetic entropy plants, the loop closed around them, and the replay of a real run's loop from its log.

    H_{t+1} = clip(H_t - decay * H_t + gain * alpha_t * push_t, 0, ceiling) the plant
    alpha_{t+1} = the control's, from H_1, ..., H_t                         unchanged

The plant is the simplest that has both failures of a constant coefficient: too small a one lets the
entropy decay towards 0 (collapse), too large a one drives it far above its start (explosion). It is not
fitted to any model. In the ``Population`` each prompt has its own entropy, and the allocation decides what reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from verl_aer.config.schema import EntropyConfig
from verl_aer.control.loop import ControlState, EntropyControl
from verl_aer.control.metrics import MetricsRow, decision_metrics
from verl_aer.errors import InputError, VerlAerError
from verl_aer.rollouts.groups import DIFFICULTIES, Groups, difficulty


@dataclass(frozen=True)
class Plant:
    """H_{t+1} = clip(H_t - decay * H_t + gain * alpha_t, 0, ceiling), measured as H_t + noise * N(0, 1).

    A constant alpha settles at gain * alpha / decay, so holding H* takes alpha = decay * H* / gain: 0.107 for
    the defaults and H* = 0.4 * 0.8.

    multiplicative: ln H_{t+1} = ln H_t - decay + gain * alpha_t, within the same bounds. Only alpha = decay / gain
    holds a level, whichever it is: below it entropy collapses, above it it explodes.

    Args:
        initial: H of the first step, nats per token.
        decay: share of the entropy that a step of the policy loss takes.
        gain: nats per token (multiplicative: share of the entropy) that a step adds per unit of alpha.
        ceiling: entropy of the uniform policy, log V, nats per token.
        noise: standard deviation of the measurement, nats per token.
        seed: of the noise.
        multiplicative: whether a step changes the logarithm of the entropy.

    >>> plant = Plant(initial=0.8, decay=0.05, gain=0.15)
    >>> round(plant.next_entropy(0.8, alpha=0.1), 6)  # 0.8 - 0.04 + 0.015
    0.775
    """

    initial: float = 0.8
    decay: float = 0.05
    gain: float = 0.15
    ceiling: float = 10.0
    noise: float = 0.0
    seed: int = 0
    multiplicative: bool = False

    def next_entropy(self, entropy: float, alpha: float) -> float:
        """Entropy after a step trained with ``alpha``, nats per token."""
        if self.multiplicative:
            # e^700 is about the largest float there is.
            return self.bounded(entropy * math.exp(min(self.gain * alpha - self.decay, 700.0)))
        return self.bounded(entropy - self.decay * entropy + self.gain * alpha)

    def hold(self, entropy: float) -> float:
        """The alpha that holds a level of ``entropy``, nats per token."""
        return self.decay / self.gain if self.multiplicative else self.decay * entropy / self.gain

    def bounded(self, entropy: float) -> float:
        """``entropy`` within what a distribution over the vocabulary can have."""
        return min(max(entropy, 0.0), self.ceiling)


def simulate(
    config: EntropyConfig, plant: Plant, steps: int, shocks: Mapping[int, float] | None = None
) -> list[MetricsRow]:
    """The control of ``config`` around ``plant``, as the rows that a run would log.

    Args:
        config: the entropy control; its allocation, its reward shaping and all of its advantage shaping that alpha
            has no part in do not act on the plant.
        plant: what it steers.
        steps: global steps, from 1 on.
        shocks: nats added to the entropy before a step is measured, by step: a collapse or an explosion.

    >>> from verl_aer import parse_entropy_config
    >>> rows = simulate(parse_entropy_config({"method": "aer"}), Plant(), steps=400)
    >>> round(rows[-1].data["aer/target"], 4), round(rows[-1].data["aer/entropy"], 4)
    (0.32, 0.32)
    """
    config = config.resolve(steps)
    control = EntropyControl(config)
    noise = np.random.default_rng(plant.seed)
    entropy, rows = plant.initial, []
    for step in range(1, steps + 1):
        entropy = plant.bounded(entropy + (shocks or {}).get(step, 0.0))
        measured = entropy + plant.noise * noise.standard_normal()
        slope = control.bonus_slope(measured, control.signal(measured, step)) + config.advantage_shaping.uses_alpha
        decision = control.observe(measured, step)
        rows.append(MetricsRow(step, {**decision_metrics(decision, control.state), "aer/bonus_slope": slope}))
        # The step trained with the alpha from before its own observation.
        entropy = plant.next_entropy(entropy, decision.alpha * slope)
    return rows


@dataclass(frozen=True)
class Population:
    """Prompts of one plant, of which a falling number is hard (accuracy 0) and all others are easy (accuracy 1).

        a_i = alpha * [generalization * mean(w) + (1 - generalization) * w_i]

    is the coefficient that acts on the entropy of prompt i, w the allocation's weights. A prompt that is solved keeps
    its entropy.

    Args:
        plant: what each prompt's entropy follows.
        generalization: share of a prompt's push that reaches all prompts alike, in [0, 1].
        hard_first: share of hard prompts in the first step.
        hard_last: the same in the last step; in between it changes by equal amounts.
        prompts: their number.

    >>> population = Population(Plant(), generalization=0.5, prompts=4)
    >>> population.coefficients(alpha=0.1, weights=np.array([1.0, 0.0, 0.0, 0.0]))
    array([0.0625, 0.0125, 0.0125, 0.0125])
    """

    plant: Plant
    generalization: float = 1.0
    hard_first: float = 0.5
    hard_last: float = 0.05
    prompts: int = 100

    def __post_init__(self) -> None:
        for name in ("generalization", "hard_first", "hard_last"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def coefficients(self, alpha: float, weights: np.ndarray) -> np.ndarray:
        """a_i, ``(P,)`` loss units per nat."""
        return alpha * (self.generalization * weights.mean() + (1 - self.generalization) * weights)

    def accuracy(self, step: int, steps: int) -> np.ndarray:
        """``(P,)`` 0 or 1, in ``step`` of ``steps``; at least one prompt is hard."""
        share = self.hard_first + (self.hard_last - self.hard_first) * (step - 1) / max(steps - 1, 1)
        return (np.arange(self.prompts) >= max(1, round(share * self.prompts))).astype(np.float64)


def simulate_population(config: EntropyConfig, population: Population, steps: int) -> list[MetricsRow]:
    """The control and the allocation of ``config`` around a population, as the rows that a run would log.

    >>> from verl_aer import parse_entropy_config
    >>> plant = Plant(initial=0.45, decay=0.012, gain=10.0, multiplicative=True)
    >>> node = {"method": "aer", "controller": {"ki": 0.005, "kp": 0.1}}
    >>> rows = simulate_population(parse_entropy_config(node), Population(plant, generalization=0.5), steps=1000)
    >>> [round(rows[-1].data[name], 2) for name in ("aer/target", "aer/entropy", "aer/entropy/hard")]
    [0.18, 0.18, 0.47]
    """
    config = config.resolve(steps)
    control, plant = EntropyControl(config), population.plant
    noise = np.random.default_rng(plant.seed)
    entropy, rows = np.full(population.prompts, plant.initial), []
    for step in range(1, steps + 1):
        groups = _groups(population.accuracy(step, steps), entropy, control.state.initial_entropy)
        weights = config.allocation.weights(groups)
        measured = entropy.mean() + plant.noise * noise.standard_normal()
        slope = control.bonus_slope(measured, control.signal(measured, step)) + config.advantage_shaping.uses_alpha
        decision = control.observe(measured, step)
        metrics = {"aer/bonus_slope": slope, "aer/weight/mean": float(weights.mean())}
        bucket = difficulty(groups.accuracy)
        for name in DIFFICULTIES:
            if (bucket == name).any():
                metrics[f"aer/entropy/{name}"] = float(entropy[bucket == name].mean())
        rows.append(MetricsRow(step, {**decision_metrics(decision, control.state), **metrics}))
        coefficients = population.coefficients(decision.alpha * slope, weights)
        entropy = np.array([plant.next_entropy(*of_prompt) for of_prompt in zip(entropy, coefficients, strict=True)])
    return rows


def _groups(accuracy: np.ndarray, entropy: np.ndarray, initial_entropy: float | None) -> Groups:
    """One row a prompt; what is remembered of a question is its accuracy."""
    return Groups(
        accuracy,
        size=np.ones(len(accuracy), dtype=np.int64),
        prompt_of_row=np.arange(len(accuracy)),
        history=accuracy,
        history_mean=accuracy.mean(),
        entropy=entropy,
        initial_entropy=initial_entropy,
    )


class ReplayError(VerlAerError, ValueError):
    """A log that cannot be replayed; the message says what is missing."""


class ReplayStep(NamedTuple):
    """alpha of one step, as the run logged it and as recomputed from the entropies logged before."""

    step: int
    logged: float
    recomputed: float


@dataclass(frozen=True)
class Replay:
    """The alphas of every logged step, and of the one after the last."""

    steps: list[ReplayStep]

    @property
    def largest_difference(self) -> float:
        """max_t |logged - recomputed|, loss units per nat: 0.0 when they agree, NaN when a logged one is."""
        return float(np.max([abs(step.logged - step.recomputed) for step in self.steps]))


def replay(rows: Sequence[MetricsRow], config: EntropyConfig, state: ControlState | None = None) -> Replay:
    """Recompute every alpha of a run from the entropies in its log.

    Args:
        rows: the log, in the order of its steps; rows without ``aer/alpha`` are passed over.
        config: the entropy settings of the run.
        state: what the run resumed from, where the log begins after a resume.

    Raises:
        ReplayError: the log holds no alpha, or begins in the middle of a run and no state is given.

    >>> from verl_aer import parse_entropy_config
    >>> config = parse_entropy_config({"method": "aer"})
    >>> replay(simulate(config, Plant(), steps=50), config).largest_difference
    0.0
    """
    logged = [row for row in rows if "aer/alpha" in row.data]
    if not logged:
        raise ReplayError("the log holds no aer/alpha: was the run trained with an entropy trainer (aer_sync)?")
    control = EntropyControl(config, state)
    _require_beginning(logged, control.state)
    steps = []
    for row in logged:
        steps.append(ReplayStep(row.step, _number(row.data["aer/alpha"]), control.alpha))
        # Absent where the actor was not updated, and then nothing was observed.
        if "aer/entropy" in row.data:
            control.observe(_number(row.data["aer/entropy"]), row.step)
    last = logged[-1]
    steps.append(ReplayStep(last.step + 1, _number(last.data["aer/alpha_next"]), control.alpha))
    return Replay(steps)


def _require_beginning(logged: Sequence[MetricsRow], state: ControlState) -> None:
    first = next((row for row in logged if "aer/updates" in row.data), None)
    if first is None:
        return
    observed = first.data["aer/updates"] + first.data["aer/skipped_updates"]
    if observed > state.updates + state.skipped_updates + 1:
        raise ReplayError(
            f"the log begins at step {first.step}, after {observed - 1:g} earlier updates; replay it from "
            "the state that the run resumed from (aer_state.json of that checkpoint)"
        )


def _number(value: float | None) -> float:
    # The file logger writes NaN and infinities as null.
    return math.nan if value is None else value
