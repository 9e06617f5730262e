"""Warnings of two states in which alpha loses control although the mean entropy may look normal.

Both occur if the policy already solves most prompts:

    hard prompts above H0   their entropy has risen above its initial level, while the mean may be on target
    few prompts             the mean weight is so small that alpha hardly affects the mean entropy

Each alert warns once when it begins, and again only after it has cleared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SMALL_WEIGHT = 0.05
"""Mean weight below which the log warns: alpha must then be 20 times as large as with all weights 1."""


class Alert(NamedTuple):
    """One alert: its name, whether the metrics begin and end it, and its message."""

    name: str
    begins: bool
    ends: bool
    message: str


def new_alerts(metrics: Mapping[str, float], active: frozenset[str]) -> tuple[frozenset[str], list[str]]:
    """Return the names of the active alerts after a step, and the messages of the alerts that began in it.

    Args:
        metrics: the metrics of the step; an alert does not change if its metrics are absent.
        active: names of the alerts that were active before the step.

    >>> few = {"aer/weight/mean": 0.01, "aer/error": 0.1}
    >>> active, messages = new_alerts(few, frozenset())
    >>> len(messages), new_alerts(few, active)[1]
    (1, [])
    """
    messages = []
    for alert in _alerts(metrics):
        if alert.begins and alert.name not in active:
            active, messages = active | {alert.name}, [*messages, alert.message]
        elif alert.ends:
            active = active - {alert.name}
    return active, messages


def _alerts(metrics: Mapping[str, float]) -> list[Alert]:
    found = []
    hard, initial = metrics.get("aer/entropy/hard"), metrics.get("aer/initial_entropy")
    if hard is not None and initial is not None:
        message = (
            f"the entropy of hard prompts is {hard:.3g} nats per token, above the initial level of {initial:.3g}, "
            f"although the mean is {metrics['aer/entropy']:.3g}. If the bonus goes to few prompts, lower "
            "entropy.allocation.entropy_ceiling or raise entropy.allocation.mean_floor"
        )
        # Without a bonus, hard prompts may naturally have more entropy than others.
        begins = hard > initial and metrics["aer/alpha"] > 0
        found.append(Alert("hard prompts above H0", begins, hard < 0.9 * initial, message))
    weight, error = metrics.get("aer/weight/mean"), metrics.get("aer/error")
    if weight is not None and error is not None:
        message = (
            f"the mean weight is {weight:.3g} and the entropy is below its target: alpha acts on few prompts and "
            "hardly affects the mean. Raise entropy.allocation.mean_floor or entropy.allocation.rho"
        )
        found.append(Alert("few prompts", weight < SMALL_WEIGHT and error > 0, weight > 2 * SMALL_WEIGHT, message))
    return found
