"""Compare ways to limit AER's alpha when few prompts are left to push, on the two-population plant.

    python -m benchmarks.actuator

The share of hard prompts falls from 1/2 to 1/20 over 2,000 steps. The tables show for each way

    hard   largest mean entropy of the hard prompts, as a multiple of H0              goal: at most 1.2
    mean   mean entropy over the last fifth of the run, as a multiple of H*           goal: 1
    alpha  largest alpha, as a multiple of the alpha that holds H* with all weights 1

The columns vary the share of a push that reaches the other prompts: 1, 0.9, 0.5 and 0. A rho that widens until the mean
weight is the floor has no row: with accuracies of 0 and 1 it gives the weights of ``mean_floor``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from verl_aer import parse_entropy_config
from verl_aer._tables import Table, as_text
from verl_aer.config.schema import EntropyConfig
from verl_aer.control.simulation import Plant, Population, simulate_population
from verl_aer.parts.allocation import Difficulty
from verl_aer.parts.controller import PI, ControllerState, Observation, Output
from verl_aer.rollouts.groups import Groups

STEPS = 2000
TARGET = 0.18
"""H* = 0.4 * H0, nats per token."""

GENERALIZATIONS = (1.0, 0.9, 0.5, 0.0)
SMALL = 0.1
"""Mean weight below which alpha rests. It is also the floor."""
NORMAL = 0.3
"""Mean weight above which a coefficient counts as normal."""

PLANTS = {
    "additive": Plant(initial=0.45, decay=0.03, gain=1.8, noise=0.005),
    "multiplicative": Plant(initial=0.45, decay=0.012, gain=10.0, noise=0.005, multiplicative=True),
}
CONTROLLERS = {
    "the preset's controller": {},
    "ki 0.005, kp 0.1": {"ki": 0.005, "kp": 0.1},
}


class Watched(Difficulty):
    """``difficulty`` that passes its last mean weight to a controller."""

    last: Any

    def weights(self, groups: Groups) -> np.ndarray:
        weights = super().weights(groups)
        self.last["mean"] = float(weights.mean())
        return weights


class Frozen(PI):
    """``pi`` whose integral does not rise while the mean weight is small."""

    last: Any

    def update(self, state: ControllerState, seen: Observation) -> tuple[ControllerState, Output]:
        rests = self.last["mean"] < SMALL and seen.error > 0
        return PI.update(self.model_copy(update={"ki": 0.0}) if rests else self, state, seen)


class Bounded(PI):
    """``pi`` whose alpha, and thus each prompt's coefficient, is at most twice that at a normal mean weight."""

    last: Any

    def init(self, alpha: float) -> ControllerState:
        return {**super().init(alpha), "normal": alpha}

    def update(self, state: ControllerState, seen: Observation) -> tuple[ControllerState, Output]:
        after, output = super().update(state, seen)
        normal = output.alpha if self.last["mean"] >= NORMAL else state["normal"]
        return {**after, "normal": normal}, output._replace(alpha=min(output.alpha, 2 * normal))


def watched(config: EntropyConfig, controller: type[PI]) -> EntropyConfig:
    last = {"mean": 1.0}
    parts = {
        "allocation": Watched(mean_floor=0.0, entropy_ceiling=None, last=last),
        "controller": controller(**config.controller.model_dump(), last=last),
    }
    return config.model_copy(update=parts)


def with_allocation(floor: float, ceiling: float | None) -> Callable[[EntropyConfig], EntropyConfig]:
    allocation = Difficulty(mean_floor=floor, entropy_ceiling=ceiling)
    return lambda config: config.model_copy(update={"allocation": allocation})


WAYS: dict[str, Callable[[EntropyConfig], EntropyConfig]] = {
    "nothing": with_allocation(0.0, None),
    "coefficient <= 2 x normal": lambda config: watched(config, Bounded),
    f"mean_floor {SMALL}": with_allocation(SMALL, None),
    "alpha rests while mean(w) small": lambda config: watched(config, Frozen),
    "entropy_ceiling 1": with_allocation(0.0, 1.0),
    f"mean_floor {SMALL} and entropy_ceiling 1": with_allocation(SMALL, 1.0),
}


def outcome(config: EntropyConfig, plant: Plant, generalization: float) -> tuple[float, float, float]:
    """Compute hard, mean and alpha of one run, as defined above."""
    rows = simulate_population(config, Population(plant, generalization, prompts=40), STEPS)
    hard, mean, alpha = (
        np.array([row.data[name] for row in rows]) for name in ("aer/entropy/hard", "aer/entropy", "aer/alpha")
    )
    return hard.max() / plant.initial, mean[-STEPS // 5 :].mean() / TARGET, alpha.max() / plant.hold(TARGET)


def compare(plant: str, controller: str) -> Table:
    config = parse_entropy_config({"method": "aer", "controller": CONTROLLERS[controller]})
    header = ["", *(f"{share:g} generalizes" for share in GENERALIZATIONS)]
    rows = []
    for name, way in WAYS.items():
        outcomes = [outcome(way(config), PLANTS[plant], share) for share in GENERALIZATIONS]
        rows.append([name, *(f"{hard:.2f} {mean:.2f} {alpha:.0f}" for hard, mean, alpha in outcomes)])
    return Table(f"{plant} plant, {controller}: hard / H0, mean / H*, alpha / hold", header, rows)


def main() -> None:
    for plant in PLANTS:
        for controller in CONTROLLERS:
            print(as_text(compare(plant, controller)))


if __name__ == "__main__":
    main()
