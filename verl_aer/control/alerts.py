"""What the log warns of: that the mean entropy hides how AER's actuator is lost, once, and again after it has cleared.

Two states, both of a policy that has become good at most prompts:

    hard prompts above H0   their entropy has left its initial level upwards, while the mean may sit on its target
    few prompts             the mean weight is so small that alpha hardly reaches the mean entropy
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SMALL_WEIGHT = 0.05
"""Mean weight below which alpha has to be twenty times as large as with all weights 1."""


class Alert(NamedTuple):
    """A state of the run that is warned of: whether it begins and ends with these metrics, and what to say."""

    name: str
    begins: bool
    ends: bool
    message: str


def new_alerts(metrics: Mapping[str, float], active: frozenset[str]) -> tuple[frozenset[str], list[str]]:
    """The names of the alerts that are active after a step, and what to say of those that have begun in it.

    Args:
        metrics: what the step logs; an alert whose metrics are absent stays as it was.
        active: names of the alerts before the step.

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
            f"the entropy of hard prompts is {hard:.3g} nats per token, above the initial level of {initial:.3g}, and "
            f"the mean, which is {metrics['aer/entropy']:.3g}, hides it. Where the bonus goes to few prompts, lower "
            "entropy.allocation.entropy_ceiling or raise entropy.allocation.mean_floor"
        )
        # Before alpha acts, hard prompts may have more entropy than others by nature.
        begins = hard > initial and metrics["aer/alpha"] > 0
        found.append(Alert("hard prompts above H0", begins, hard < 0.9 * initial, message))
    weight, error = metrics.get("aer/weight/mean"), metrics.get("aer/error")
    if weight is not None and error is not None:
        message = (
            f"the mean weight is {weight:.3g} and the entropy is below its target: alpha hardly reaches the mean, and "
            "what it takes goes to few prompts. Raise entropy.allocation.mean_floor or entropy.allocation.rho"
        )
        found.append(Alert("few prompts", weight < SMALL_WEIGHT and error > 0, weight > 2 * SMALL_WEIGHT, message))
    return found
