"""veRL's built-in measures against entropy collapse, as methods that set veRL's settings and add no entropy term.

They are measured and logged like every other method, so that a comparison changes one word.
"""

from __future__ import annotations

from dataclasses import replace

from verl_aer.methods.base import Method, register_method
from verl_aer.methods.baselines import none

ACTOR = "actor_rollout_ref.actor"


def _without_a_term(source: str, summary: str, verl: dict[str, float | str]) -> Method:
    return replace(
        none(),
        provenance="published",
        source=source,
        summary=summary,
        verl=verl,
        watch="actor/pg_clipfrac; aer/entropy, which is not controlled",
    )


@register_method("clip_higher")
def clip_higher() -> Method:
    """L = -min(r A, clip(r, 1 - 0.2, 1 + 0.28) A): DAPO's asymmetric clip, which lets unlikely tokens grow."""
    return _without_a_term(
        "arXiv 2503.14476",
        "DAPO's asymmetric clip; no entropy term",
        {f"{ACTOR}.clip_ratio_low": 0.2, f"{ACTOR}.clip_ratio_high": 0.28},
    )


@register_method("clip_cov")
def clip_cov() -> Method:
    """cov = (A - mean A)(log pi - mean log pi); a random few of the tokens with 1 < cov < 5 get no gradient.

    The values are those of the authors' 7B recipe, which disables the clip of the ratio (1 on both sides).
    """
    return _without_a_term(
        "arXiv 2505.22617",
        "Clip-Cov: no gradient for a few tokens of high covariance; no entropy term",
        {
            f"{ACTOR}.policy_loss.loss_mode": "clip_cov",
            f"{ACTOR}.policy_loss.clip_cov_ratio": 0.0002,
            f"{ACTOR}.policy_loss.clip_cov_lb": 1.0,
            f"{ACTOR}.policy_loss.clip_cov_ub": 5.0,
            f"{ACTOR}.clip_ratio_low": 1.0,
            f"{ACTOR}.clip_ratio_high": 1.0,
        },
    )


@register_method("kl_cov")
def kl_cov() -> Method:
    """L = -A r + ppo_kl_coef * abs(log pi - log pi_old) on the tokens of highest covariance, -A r on the others.

    The values are those of the authors' 7B recipe. With a single mini-batch per step, the log-ratio and the penalty
    are 0.
    """
    return _without_a_term(
        "arXiv 2505.22617",
        "KL-Cov: a KL penalty on the tokens of highest covariance; no entropy term",
        {
            f"{ACTOR}.policy_loss.loss_mode": "kl_cov",
            f"{ACTOR}.policy_loss.kl_cov_ratio": 0.002,
            f"{ACTOR}.policy_loss.ppo_kl_coef": 1.0,
        },
    )
