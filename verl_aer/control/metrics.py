"""The contract of every metric this package logs: name, unit, formula, how to read it.

veRL decides by substrings of a name how to combine its values (``max``, ``min``, ``sum``, ``total``), so no
name contains one of them. On the workers veRL puts ``actor/`` in front of names that lack it.
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
    """One metric: its name in the log, its unit, how it is computed and how to read it."""

    name: str
    unit: str
    formula: str
    reading: str


_HARD, _MEDIUM, _EASY = "g < 1/3", "1/3 <= g < 2/3", "g >= 2/3"

METRICS = [
    MetricSpec("aer/alpha", "loss/nat", "alpha_t", "coefficient that this step trained with"),
    MetricSpec("aer/alpha_next", "loss/nat", "alpha_{t+1}", "coefficient decided after this step"),
    MetricSpec(
        "aer/entropy",
        "nats/token",
        "H_t = Σ_{i,t} m·H / Σ_{i,t} m",
        "controlled entropy: mean over the step's response tokens, under the policy of the old log-probs; with "
        "aggregation=seq-mean-token-mean the mean over responses of that of each",
    ),
    MetricSpec("aer/target", "nats/token", "H*", "level that alpha steers towards; absent without a target"),
    MetricSpec(
        "aer/initial_entropy",
        "nats/token",
        "H0",
        "entropy of the first step(s) ever trained; never re-measured",
    ),
    MetricSpec("aer/error", "nats/token", "H* - H_t", "above 0: too little entropy, alpha rises"),
    MetricSpec("aer/saturated", "0 or 1", "1[clip bound alpha]", "1: a bound other than 0 holds alpha back"),
    MetricSpec("aer/saturated_steps", "steps", "Σ_t saturated", "growing: the bounds are too tight for the target"),
    MetricSpec("aer/skipped_updates", "steps", "Σ_t 1[H_t not finite]", "above 0: look for NaN in the policy"),
    MetricSpec("aer/updates", "steps", "Σ_t 1[rule applied]", "one per global step once H0 is known"),
    MetricSpec(
        "aer/weight/mean",
        "1",
        "mean_i w_i",
        "mean weight of real rows; alpha times it is the mean coefficient; below 0.05 the log warns",
    ),
    MetricSpec("aer/weight/nonzero_frac", "1", "mean_q 1[w(q) > 0]", "share of prompts that explore"),
    MetricSpec(
        "aer/accuracy/mean",
        "1",
        "mean_q g(q)",
        "mean group accuracy; absent, with all that is by difficulty, where nothing says which rollouts are correct",
    ),
    MetricSpec(
        "aer/accuracy/zero_frac",
        "1",
        "mean_q 1[g(q) = 0]",
        "no advantage there: entropy is the only gradient",
    ),
    MetricSpec("aer/accuracy/one_frac", "1", "mean_q 1[g(q) = 1]", "solved prompts, nothing left to learn"),
    MetricSpec(
        "aer/accuracy/unreported",
        "rollouts",
        "Σ_i 1[the reward reported no correctness]",
        "counted as wrong; above 0: see why the reward failed there",
    ),
    MetricSpec("aer/weight/hard", "1", f"mean_q w(q), {_HARD}", "absent in a step without such prompts"),
    MetricSpec("aer/weight/medium", "1", f"mean_q w(q), {_MEDIUM}", "absent in a step without such prompts"),
    MetricSpec("aer/weight/easy", "1", f"mean_q w(q), {_EASY}", "absent in a step without such prompts"),
    MetricSpec(
        "aer/entropy/hard",
        "nats/token",
        f"token mean of H, {_HARD}",
        "do hard prompts keep exploring? above aer/initial_entropy the log warns",
    ),
    MetricSpec(
        "aer/entropy/medium",
        "nats/token",
        f"token mean of H, {_MEDIUM}",
        "absent in a step without such prompts",
    ),
    MetricSpec(
        "aer/entropy/easy", "nats/token", f"token mean of H, {_EASY}", "may fall: easy prompts get little or no bonus"
    ),
    MetricSpec(
        "aer/bonus_slope",
        "1",
        "d value(H)/dH at H_t",
        "what a nat more is worth to the regularizer, times alpha to the loss; below 0 the entropy is pushed down",
    ),
    MetricSpec("aer/reward_change", "reward", "mean_i R'_i - R_i", "what reward shaping adds to a rollout"),
    MetricSpec(
        "aer/advantage_change",
        "advantage",
        "mean_{i,t} abs(A' - A)",
        "how far advantage shaping moves a token; compare it with critic/advantages",
    ),
    MetricSpec(
        "aer/question_memory/size",
        "questions",
        "questions remembered",
        "at entropy.question_memory.max_questions: some are forgotten",
    ),
    MetricSpec("timing_s/entropy_control", "s", "wall time", "time this package took in the step, on the driver"),
    MetricSpec(
        "actor/aer/entropy",
        "nats/token",
        "Σ_{i,t} m·H / Σ_{i,t} m",
        "exact token mean under the policy being updated, over ranks, micro- and mini-batches, of rows with a "
        "coefficient: others are not computed; of what is pushed, in bypass mode of what is measured",
    ),
    MetricSpec("actor/aer/entropy_term", "loss", "alpha * agg(w·s·value(H))", "what is taken off the policy loss"),
    MetricSpec("actor/aer/policy_loss", "loss", "L_policy", "veRL's own loss, before the entropy term"),
    MetricSpec(
        "actor/aer/policy_gradient",
        "loss/nat",
        "Σ_{i,t} abs(∂L_policy/∂log π)",
        "how hard the policy loss pulls at the log-probs of the sampled tokens",
    ),
    MetricSpec(
        "actor/aer/entropy_gradient",
        "loss/nat",
        "Σ_{i,t} abs(∂(alpha * agg(w·s·value(H)))/∂H)",
        "how hard the entropy term pulls at the entropies; far above the policy's: entropy rules the update",
    ),
]


def markdown_table() -> str:
    """Write METRICS as a Markdown table."""
    rows = [[f"`{metric.name}`", metric.unit, f"`{metric.formula}`", metric.reading] for metric in METRICS]
    return as_markdown(Table("metrics", ["metric", "unit", "formula", "reading"], rows))


def decision_metrics(decision: Decision | None, state: ControlState) -> dict[str, float]:
    """What the controller saw and did in one step, by metric name; ``state`` is the one after the decision.

    None, for a step without an actor update, reports alpha alone. A value that does not exist has no entry.
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
