"""Metrics of a step's prompts on the driver; ``verl_aer.control.metrics`` has each metric's unit and formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from verl_aer.rollouts.groups import DIFFICULTIES, Groups, difficulty
from verl_aer.rollouts.types import BatchRows


@dataclass(frozen=True)
class PromptSummary:
    """The P prompts of one local update, each array ``(P,)`` float64.

    accuracy: group accuracy, NaN if the correctness is unknown. unreported: number of rollouts that count as wrong
    because the reward reported no correctness. weight: w(q). rows: number of real rows. tokens: response tokens of
    these rows. entropy_nats: sum of their entropies, NaN if veRL does not compute them (bypass mode).
    """

    accuracy: np.ndarray
    unreported: np.ndarray
    weight: np.ndarray
    rows: np.ndarray
    tokens: np.ndarray
    entropy_nats: np.ndarray


def summarize_prompts(groups: Groups, weights: np.ndarray, rows: BatchRows, unreported: np.ndarray) -> PromptSummary:
    """Sum over each prompt's rows.

    weights: ``(N,)``, the same for all rows of a prompt. unreported: ``(N,)`` bool, rows for which the reward reported
    no correctness.
    """
    real = ~rows.is_padding
    prompt = groups.prompt_of_row[real]
    prompts = len(groups.accuracy)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(prompt, weights=values[real], minlength=prompts)

    weight = np.zeros(prompts)
    weight[prompt] = weights[real]
    return PromptSummary(
        accuracy=groups.accuracy,
        unreported=summed(unreported & groups.is_last),
        weight=weight,
        rows=summed(np.ones(len(real))),
        tokens=summed(rows.tokens),
        entropy_nats=np.full(prompts, np.nan) if rows.entropy_nats is None else summed(rows.entropy_nats),
    )


def counted_entropies(
    rows: BatchRows, entropy_nats: np.ndarray, by_response: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Select the rows that count for the entropy: real rows with response tokens.

    Returns:
        A mask of them, ``(N,)`` bool; the nats and the tokens of each. If ``by_response``, these are the mean of the
        response and 1, so that each response counts alike.
    """
    counted = ~rows.is_padding & (rows.tokens > 0)
    nats, tokens = entropy_nats[counted], rows.tokens[counted]
    return (counted, nats / tokens, np.ones(len(tokens))) if by_response else (counted, nats, tokens)


def prompt_entropies(groups: Groups, rows: BatchRows, by_response: bool) -> np.ndarray | None:
    """Compute the mean entropy of each prompt's rollouts, ``(P,)`` nats per token.

    The mean is over tokens, or over responses if ``by_response``. It is NaN for a prompt without response tokens.
    Returns None if veRL does not compute entropies (bypass mode).
    """
    if rows.entropy_nats is None:
        return None
    counted, nats, tokens = counted_entropies(rows, rows.entropy_nats, by_response)
    prompt = groups.prompt_of_row[counted]
    prompts = len(groups.accuracy)
    nats, tokens = (np.bincount(prompt, weights=values, minlength=prompts) for values in (nats, tokens))
    return np.divide(nats, tokens, out=np.full(prompts, np.nan), where=tokens > 0)


def group_metrics(updates: Sequence[PromptSummary]) -> dict[str, float]:
    """Compute the accuracy, weight and entropy metrics of a global step, overall and by difficulty.

    If the correctness of the step's rollouts is unknown, there are no metrics of accuracy and by difficulty.
    """
    if not sum(len(update.accuracy) for update in updates):
        return {}
    step = PromptSummary(
        **{
            column.name: np.concatenate([getattr(update, column.name) for update in updates])
            for column in fields(PromptSummary)
        }
    )
    metrics = {
        "aer/weight/mean": (step.weight * step.rows).sum() / step.rows.sum(),
        "aer/weight/nonzero_frac": (step.weight > 0).mean(),
    }
    if not np.isnan(step.accuracy).any():
        metrics |= _accuracy_metrics(step)
    return {name: float(value) for name, value in metrics.items()}


def _accuracy_metrics(step: PromptSummary) -> dict[str, np.floating]:
    metrics = {
        "aer/accuracy/mean": step.accuracy.mean(),
        "aer/accuracy/zero_frac": (step.accuracy == 0).mean(),
        "aer/accuracy/one_frac": (step.accuracy == 1).mean(),
        "aer/accuracy/unreported": step.unreported.sum(),
    }
    bucket = difficulty(step.accuracy)
    for name in DIFFICULTIES:
        prompts = bucket == name
        if not prompts.any():
            continue
        metrics[f"aer/weight/{name}"] = step.weight[prompts].mean()
        nats, tokens = step.entropy_nats[prompts].sum(), step.tokens[prompts].sum()
        if tokens > 0 and not np.isnan(step.entropy_nats).all():
            metrics[f"aer/entropy/{name}"] = nats / tokens
    return metrics
