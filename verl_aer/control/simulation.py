"""Simulation of the control loop with a synthetic plant, and replay of a real run's loop from its log.

    H_{t+1} = clip(H_t - decay * H_t + gain * alpha_t * push_t, 0, ceiling) the plant
    alpha_{t+1} from H_1, ..., H_t                                          the unchanged control

The plant is the simplest model with both failures of a constant coefficient: if the coefficient is too small, the
entropy decays towards 0 (collapse); if it is too large, the entropy rises far above its start (explosion). The plant is
not fitted to any model. In the ``Population`` each prompt has its own entropy and its own weight from the allocation.
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

    With a constant alpha the entropy settles at gain * alpha / decay. Holding H* therefore needs
    alpha = decay * H* / gain: 0.107 for the defaults and H* = 0.4 * 0.8.

    multiplicative: ln H_{t+1} = ln H_t - decay + gain * alpha_t, within the same bounds. Only alpha = decay / gain
    holds the entropy at its level: a lower alpha lets it collapse, a higher one lets it explode.

    Args:
        initial: H of the first step, nats per token.
        decay: share of the entropy that the policy loss removes per step.
        gain: nats per token (multiplicative: share of the entropy) added per step and unit of alpha.
        ceiling: entropy of the uniform policy, log V, nats per token.
        noise: standard deviation of the measurement, nats per token.
        seed: seed of the noise.
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
        """Return the entropy after a step trained with ``alpha``, nats per token."""
        if self.multiplicative:
            # e^700 is close to the largest float.
            return self.bounded(entropy * math.exp(min(self.gain * alpha - self.decay, 700.0)))
        return self.bounded(entropy - self.decay * entropy + self.gain * alpha)

    def hold(self, entropy: float) -> float:
        """Return the alpha that holds the level ``entropy``, nats per token."""
        return self.decay / self.gain if self.multiplicative else self.decay * entropy / self.gain

    def bounded(self, entropy: float) -> float:
        """Clip ``entropy`` to the range of a distribution over the vocabulary."""
        return min(max(entropy, 0.0), self.ceiling)


def simulate(
    config: EntropyConfig, plant: Plant, steps: int, shocks: Mapping[int, float] | None = None
) -> list[MetricsRow]:
    """Simulate the control with ``plant``, and return the rows that a run would log.

    Args:
        config: the entropy control. Its allocation, its reward shaping and advantage shaping without alpha have no
            effect on the plant.
        plant: the simulated policy.
        steps: number of global steps.
        shocks: nats added to the entropy before a step is measured, by step; models a collapse or an explosion.

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
        # The step trained with the alpha from before its observation.
        entropy = plant.next_entropy(entropy, decision.alpha * slope)
    return rows


@dataclass(frozen=True)
class Population:
    """Prompts with a plant each; a falling number of them is hard (accuracy 0), all others are easy (accuracy 1).

        a_i = alpha * [generalization * mean(w) + (1 - generalization) * w_i]

    a_i is the coefficient that acts on the entropy of prompt i, and w are the allocation's weights. A prompt keeps its
    entropy when it becomes easy.

    Args:
        plant: the plant of each prompt.
        generalization: share of a prompt's push that acts equally on all prompts, in [0, 1].
        hard_first: share of hard prompts in the first step.
        hard_last: share of hard prompts in the last step; the share changes linearly in between.
        prompts: number of prompts.

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
        """Return a_i, ``(P,)`` loss units per nat."""
        return alpha * (self.generalization * weights.mean() + (1 - self.generalization) * weights)

    def accuracy(self, step: int, steps: int) -> np.ndarray:
        """Return the accuracies in ``step`` of ``steps``, ``(P,)`` 0 or 1; at least one prompt is hard."""
        share = self.hard_first + (self.hard_last - self.hard_first) * (step - 1) / max(steps - 1, 1)
        return (np.arange(self.prompts) >= max(1, round(share * self.prompts))).astype(np.float64)


def simulate_population(config: EntropyConfig, population: Population, steps: int) -> list[MetricsRow]:
    """Simulate the control and the allocation with a population, and return the rows that a run would log.

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
    """Build groups of one row per prompt; the history of a question is its accuracy."""
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
    """A log that cannot be replayed; the message names the missing part."""


class ReplayStep(NamedTuple):
    """alpha of one step: the logged value, and the value recomputed from the earlier entropies in the log."""

    step: int
    logged: float
    recomputed: float


@dataclass(frozen=True)
class Replay:
    """The alphas of all logged steps and of the step after the last."""

    steps: list[ReplayStep]

    @property
    def largest_difference(self) -> float:
        """max_t |logged - recomputed|, loss units per nat; 0.0 if all agree, NaN if a logged alpha is NaN."""
        return float(np.max([abs(step.logged - step.recomputed) for step in self.steps]))


def replay(rows: Sequence[MetricsRow], config: EntropyConfig, state: ControlState | None = None) -> Replay:
    """Recompute every alpha of a run from the entropies in its log.

    Args:
        rows: the log, ordered by step; rows without ``aer/alpha`` are skipped.
        config: the entropy settings of the run.
        state: the state that the run resumed from, if the log begins after a resume.

    Raises:
        ReplayError: the log has no alpha, or it begins in the middle of a run and no state is given.

    >>> from verl_aer import parse_entropy_config
    >>> config = parse_entropy_config({"method": "aer"})
    >>> replay(simulate(config, Plant(), steps=50), config).largest_difference
    0.0
    """
    logged = [row for row in rows if "aer/alpha" in row.data]
    if not logged:
        raise ReplayError("the log has no aer/alpha; runs with +entropy=<method> log it")
    control = EntropyControl(config, state)
    _require_beginning(logged, control.state)
    steps = []
    for row in logged:
        steps.append(ReplayStep(row.step, _number(row.data["aer/alpha"]), control.alpha))
        # Absent if the actor was not updated; nothing was observed in that step.
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
            f"the log begins at step {first.step}, after {observed - 1:g} earlier updates; give the state that the run "
            "resumed from (aer_state.json of that checkpoint)"
        )


def _number(value: float | None) -> float:
    # The file logger writes NaN and infinities as null.
    return math.nan if value is None else value
