"""What the driver measures of a step's prompts; ``verl_aer.metrics`` holds each metric's unit and formula."""

from __future__ import annotations

import numpy as np

from verl_aer.correctness import DIFFICULTY_BUCKETS, Groups
from verl_aer.integration.batch import BatchRows


def group_metrics(groups: Groups, weights: np.ndarray, rows: BatchRows) -> dict[str, float]:
    """Accuracy, weight and entropy of the step's prompts, as a whole and by difficulty. ``weights`` is ``(N,)``."""
    if groups.accuracy.size == 0:
        return {}
    real = ~rows.is_padding
    prompt = groups.prompt_of_row[real]
    weights = weights[real]
    prompt_weight = np.zeros(len(groups.accuracy))
    prompt_weight[prompt] = weights
    metrics = {
        "aer/accuracy/mean": groups.accuracy.mean(),
        "aer/accuracy/all_wrong_share": (groups.accuracy == 0).mean(),
        "aer/accuracy/all_right_share": (groups.accuracy == 1).mean(),
        "aer/weight/mean": weights.mean(),
        "aer/weight/positive_share": (prompt_weight > 0).mean(),
    }
    for name, contains in DIFFICULTY_BUCKETS.items():
        prompts = contains(groups.accuracy)
        if not prompts.any():
            continue
        metrics[f"aer/weight/{name}"] = prompt_weight[prompts].mean()
        tokens = rows.tokens[real][prompts[prompt]].sum()
        if rows.entropy_nats is not None and tokens > 0:
            metrics[f"aer/entropy/{name}"] = rows.entropy_nats[real][prompts[prompt]].sum() / tokens
    return {name: float(value) for name, value in metrics.items()}
