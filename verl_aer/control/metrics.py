"""Every metric that this package logs, with its name, unit, formula and interpretation.

veRL chooses the reduction of a metric by substrings of its name (``max``, ``min``, ``sum``, ``total``), so no name
contains one of them. On the workers, veRL adds the prefix ``actor/`` to names without it.
"""

from __future__ import annotations

from typing import NamedTuple

from verl_aer._tables import Table, as_markdown
from verl_aer.control.loop import ControlState, Decision


class MetricsRow(NamedTuple):
    """The metrics of one global step."""

    step: int
    data: dict[str, float]


class MetricSpec(NamedTuple):
    """One metric: its name in the log, its unit, its formula and its interpretation."""

    name: str
    unit: str
    formula: str
    interpretation: str


_HARD, _MEDIUM, _EASY = "g < 1/3", "1/3 <= g < 2/3", "g >= 2/3"

METRICS = [
    MetricSpec("aer/alpha", "loss/nat", "alpha_t", "coefficient of this step"),
    MetricSpec("aer/alpha_next", "loss/nat", "alpha_{t+1}", "coefficient of the next step"),
    MetricSpec(
        "aer/entropy",
        "nats/token",
        "H_t = Σ_{i,t} m·H / Σ_{i,t} m",
        "controlled entropy: mean over the step's response tokens, under the policy of the old log-probs; with "
        "aggregation=seq-mean-token-mean, mean over responses of each response's token mean",
    ),
    MetricSpec("aer/target", "nats/token", "H*", "target level of the entropy; absent without a target"),
    MetricSpec(
        "aer/initial_entropy",
        "nats/token",
        "H0",
        "entropy of the first training steps; never measured again",
    ),
    MetricSpec("aer/error", "nats/token", "H* - H_t", "positive: the entropy is too low and alpha rises"),
    MetricSpec("aer/saturated", "0 or 1", "1[clip bound alpha]", "1: a bound other than 0 limits alpha"),
    MetricSpec("aer/saturated_steps", "steps", "Σ_t saturated", "if it grows, the bounds are too tight for the target"),
    MetricSpec("aer/skipped_updates", "steps", "Σ_t 1[H_t not finite]", "above 0: check the policy for NaN"),
    MetricSpec("aer/updates", "steps", "Σ_t 1[rule applied]", "grows by one per global step once H0 is known"),
    MetricSpec(
        "aer/weight/mean",
        "1",
        "mean_i w_i",
        "mean weight of real rows; alpha times it is the mean coefficient; the log warns below 0.05",
    ),
    MetricSpec("aer/weight/nonzero_frac", "1", "mean_q 1[w(q) > 0]", "share of prompts with a bonus"),
    MetricSpec(
        "aer/accuracy/mean",
        "1",
        "mean_q g(q)",
        "mean group accuracy; absent, like all metrics by difficulty, if the correctness is unknown",
    ),
    MetricSpec(
        "aer/accuracy/zero_frac",
        "1",
        "mean_q 1[g(q) = 0]",
        "share of prompts without a correct rollout; they have no advantage, so entropy is their only gradient",
    ),
    MetricSpec("aer/accuracy/one_frac", "1", "mean_q 1[g(q) = 1]", "share of solved prompts; they have no advantage"),
    MetricSpec(
        "aer/accuracy/unreported",
        "rollouts",
        "Σ_i 1[the reward reported no correctness]",
        "rollouts without a reported correctness, which count as wrong; above 0: check why the reward failed",
    ),
    MetricSpec("aer/weight/hard", "1", f"mean_q w(q), {_HARD}", "mean weight of hard prompts; absent without any"),
    MetricSpec(
        "aer/weight/medium", "1", f"mean_q w(q), {_MEDIUM}", "mean weight of medium prompts; absent without any"
    ),
    MetricSpec("aer/weight/easy", "1", f"mean_q w(q), {_EASY}", "mean weight of easy prompts; absent without any"),
    MetricSpec(
        "aer/entropy/hard",
        "nats/token",
        f"token mean of H, {_HARD}",
        "entropy of hard prompts, which should keep exploring; the log warns above aer/initial_entropy",
    ),
    MetricSpec(
        "aer/entropy/medium",
        "nats/token",
        f"token mean of H, {_MEDIUM}",
        "entropy of medium prompts; absent without any",
    ),
    MetricSpec(
        "aer/entropy/easy",
        "nats/token",
        f"token mean of H, {_EASY}",
        "entropy of easy prompts; may fall, because they get little or no bonus",
    ),
    MetricSpec(
        "aer/bonus_slope",
        "1",
        "d value(H)/dH at H_t",
        "derivative of the regularizer with respect to the entropy; negative: the entropy is pushed down",
    ),
    MetricSpec("aer/reward_change", "reward", "mean_i R'_i - R_i", "mean change of a rollout's reward by shaping"),
    MetricSpec(
        "aer/advantage_change",
        "advantage",
        "mean_{i,t} abs(A' - A)",
        "mean absolute change of a token's advantage by shaping; compare it with critic/advantages",
    ),
    MetricSpec(
        "aer/question_memory/size",
        "questions",
        "number of questions in memory",
        "at entropy.question_memory.max_questions, the least recently seen ones are dropped",
    ),
    MetricSpec("timing_s/entropy_control", "s", "wall time", "time of this package per step on the driver"),
    MetricSpec(
        "actor/aer/entropy",
        "nats/token",
        "Σ_{i,t} m·H / Σ_{i,t} m",
        "exact token mean of the pushed measure (bypass mode: of the controller's) under the policy being updated, "
        "over ranks, mini- and micro-batches; only of rows with a coefficient, because others are not computed",
    ),
    MetricSpec("actor/aer/entropy_term", "loss", "alpha * agg(w·s·value(H))", "term subtracted from the policy loss"),
    MetricSpec("actor/aer/policy_loss", "loss", "L_policy", "veRL's loss before the entropy term"),
    MetricSpec(
        "actor/aer/policy_gradient",
        "loss/nat",
        "Σ_{i,t} abs(∂L_policy/∂log π)",
        "L1 norm of the policy loss's gradient with respect to the log-probs of the sampled tokens",
    ),
    MetricSpec(
        "actor/aer/entropy_gradient",
        "loss/nat",
        "Σ_{i,t} abs(∂(alpha * agg(w·s·value(H)))/∂H)",
        "L1 norm of the entropy term's gradient; if it is much larger than actor/aer/policy_gradient, the entropy term "
        "dominates the update",
    ),
]


def markdown_table() -> str:
    """Format METRICS as a Markdown table."""
    rows = [[f"`{metric.name}`", metric.unit, f"`{metric.formula}`", metric.interpretation] for metric in METRICS]
    return as_markdown(Table("metrics", ["metric", "unit", "formula", "interpretation"], rows))


def decision_metrics(decision: Decision | None, state: ControlState) -> dict[str, float]:
    """Return the controller's metrics of one step, by name; ``state`` is the state after the decision.

    The decision of a step without an actor update is None; only alpha is then reported. Unknown values have no entry.
    """
    if decision is None:
        return {"aer/alpha": state.alpha, "aer/alpha_next": state.alpha}
    metrics = {
        "aer/alpha": decision.alpha,
        "aer/alpha_next": decision.next_alpha,
        "aer/entropy": decision.entropy,
        "aer/target": decision.target,
        "aer/initial_entropy": decision.initial_entropy,
        "aer/error": decision.error,
        "aer/saturated": float(decision.saturated),
        "aer/saturated_steps": state.saturated_steps,
        "aer/skipped_updates": state.skipped_updates,
        "aer/updates": state.updates,
    }
    return {name: value for name, value in metrics.items() if value is not None}
