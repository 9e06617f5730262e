"""Shapings of rewards and advantages, each compared with its formula computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from verl_aer import Groups, Rollouts, Tokens, get_part, part_names
from verl_aer.parts.advantage_shaping import (
    AdvantageShaping,
    EntropyBonus,
    Signed,
    Steer,
    shape_advantages,
)
from verl_aer.parts.reward_shaping import Ares, Length, RewardShaping, change_rewards, window_means
from verl_aer.rollouts.types import ShapingError


def rollouts_of(accuracy: list[float], correct: list[float], **others: object) -> Rollouts:
    """Two rollouts of each prompt, and a padding row."""
    prompts = np.repeat(np.arange(len(accuracy)), 2)
    groups = Groups(
        np.array(accuracy),
        np.full(len(accuracy), 2),
        np.append(prompts, -1),
        history=others.pop("history", None),
        shortest=others.pop("shortest", None),
    )
    rows = len(prompts) + 1
    tokens = np.array(others.pop("tokens", [4.0] * rows))
    is_last = np.append(np.full(rows - 1, True), False)
    return Rollouts(groups, np.array([*correct, 0.0]), tokens, is_last, **others)


ROLLOUTS = rollouts_of([0.5, 0.0], [1.0, 0.0, 0.0, 0.0])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool()
TOKENS = Tokens(
    advantages=torch.tensor([[1.0] * 3, [-1.0] * 3, [0.0] * 3, [0.5] * 3, [0.0] * 3]),
    mask=MASK,
    log_probs=torch.tensor(
        [[-0.01, -2.0, -0.5], [-0.02, -1.0, -9.0], [-3.0, -9.0, -9.0], [-0.1, -0.2, -0.3], [-9.0] * 3]
    ),
    entropy=torch.tensor([[0.05, 1.5, 0.5], [0.05, 3.0, 99.0], [2.0, 9.0, 9.0], [0.1, 0.2, 0.3], [9.0] * 3]),
)
WEIGHT = np.array([1.0, 1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("kind", part_names("advantage_shaping"))
def test_a_shape_is_kept_and_what_came_in_is_as_it_was(kind):
    before = TOKENS.advantages.clone()
    shaped = get_part("advantage_shaping", kind)().shape(TOKENS, ROLLOUTS, WEIGHT, alpha=0.5)
    assert shaped.shape == before.shape
    assert torch.isfinite(shaped[MASK]).all()
    assert torch.equal(TOKENS.advantages, before)
    assert get_part("advantage_shaping", kind).shapes == (not torch.equal(shaped[MASK], before[MASK]))


def test_uncertain_tokens_of_weighted_rows_get_a_bonus():
    shaped = EntropyBonus(a=0.4, kappa=2.0).shape(TOKENS, ROLLOUTS, WEIGHT, alpha=0.0)
    # min(0.4 * 0.05, 1/2), min(0.4 * 1.5, 1/2), min(0.4 * 0.5, 1/2)
    assert shaped[0].tolist() == pytest.approx([1.02, 1.5, 1.2])
    assert shaped[1, :2].tolist() == pytest.approx([-0.98, -0.5])
    # No weight, no bonus.
    assert shaped[3].tolist() == [0.5] * 3


def test_steer_by_hand():
    advantage, log_pi, entropy = TOKENS.advantages[MASK], TOKENS.log_probs[MASK], TOKENS.entropy[MASK]
    omega = (advantage * (1 - log_pi.exp()) * (log_pi + entropy)).abs()
    linear = 1.2 - (omega - omega.min()) / (omega.max() - omega.min()) * 0.4
    assert torch.allclose(Steer().shape(TOKENS, ROLLOUTS, WEIGHT, 0.0)[MASK], linear * advantage, atol=1e-6)
    exponential = torch.exp(math.log(0.8) / omega.max() * omega).clamp(min=0.8)
    part = Steer(weighting="exponential")
    assert torch.allclose(part.shape(TOKENS, ROLLOUTS, WEIGHT, 0.0)[MASK], exponential * advantage, atol=1e-6)


def test_steer_of_equal_tokens_or_none():
    flat = Tokens(torch.ones(1, 2), torch.ones(1, 2).bool(), torch.zeros(1, 2), torch.zeros(1, 2))
    assert Steer().shape(flat, ROLLOUTS, WEIGHT, 0.0).tolist() == [[1.0, 1.0]]
    empty = Tokens(torch.ones(1, 2), torch.zeros(1, 2).bool(), torch.zeros(1, 2), torch.zeros(1, 2))
    assert Steer().shape(empty, ROLLOUTS, WEIGHT, 0.0).tolist() == [[1.0, 1.0]]


def test_sure_tokens_are_rewarded_less_and_punished_more_while_the_entropy_is_too_low():
    part = Signed(probability=0.95)
    low = part.shape(TOKENS, ROLLOUTS, WEIGHT, alpha=0.5)
    # exp(-0.01) and exp(-0.02) are above 0.95, all others below.
    assert low[0].tolist() == [0.5, 1.0, 1.0]
    assert low[1, :2].tolist() == [-1.5, -1.0]
    high = part.shape(TOKENS, ROLLOUTS, WEIGHT, alpha=-0.5)
    assert (high[0, 0].item(), high[1, 0].item()) == (1.5, -0.5)


@pytest.mark.parametrize("kind", part_names("reward_shaping"))
def test_a_change_for_every_row(kind):
    rollouts = rollouts_of(
        [0.5, 0.0],
        [1.0, 0.0, 0.0, 0.0],
        history=np.array([0.4, 0.0]),
        shortest=np.array([2.0, np.nan]),
        entropy=torch.rand(5, 9, generator=torch.Generator().manual_seed(0)),
        mask=torch.ones(5, 9).bool(),
    )
    change, memory = get_part("reward_shaping", kind)().change(rollouts, {})
    assert change.shape == (5,)
    assert np.isfinite(change).all()
    assert change[-1] == 0
    assert all(math.isfinite(value) for value in memory.values())


def test_longer_answers_to_questions_that_go_better_lose():
    rollouts = rollouts_of(
        [1.0, 0.5, 0.5],
        [1.0, 1.0, 1.0, 0.0, 1.0, 0.0],
        history=np.array([0.9, 0.6, 0.4]),
        shortest=np.array([10.0, 10.0, 10.0]),
        tokens=[15.0, 40.0, 15.0, 15.0, 0.5, 15.0, 99.0],
    )
    change, _ = Length(beta=0.2).change(rollouts, {})
    # Half as long again; four times as long, clipped at 1; a question that goes worse; far shorter, clipped at -0.9;
    # a wrong answer; padding.
    assert change.tolist() == pytest.approx([-0.1, -0.2, 0.0, 0.0, 0.18, 0.0, 0.0])


def test_the_shortest_correct_rollout_is_judged_by_its_last_output():
    groups = Groups(np.array([0.5, 0.0]), np.array([2, 1]), np.array([0, 0, 0, 1]))
    # The first rollout's first output looks correct, its last is not.
    rollouts = Rollouts(
        groups,
        correct=np.array([1.0, 0.0, 1.0, 0.0]),
        tokens=np.array([3.0, 3.0, 9.0, 2.0]),
        is_last=np.array([False, True, True, True]),
    )
    assert rollouts.shortest_correct()[0] == 9.0
    assert np.isnan(rollouts.shortest_correct()[1])


class Constant(RewardShaping):
    """The same for every row."""

    value: object = None

    def change(self, rollouts, memory):
        return self.value, memory


def test_a_change_that_cannot_be_used_names_the_row():
    change, _ = change_rewards(Constant(value=np.array([1.0, 2.0, 3.0, 4.0, np.nan])), ROLLOUTS, {})
    # Padding carries no reward, whatever is said of it.
    assert change.tolist() == [1.0, 2.0, 3.0, 4.0, 0.0]
    with pytest.raises(ShapingError, match="returned inf for row 2"):
        change_rewards(Constant(value=np.array([1.0, 2.0, np.inf, 4.0, 0.0])), ROLLOUTS, {})
    with pytest.raises(ShapingError, match=r"shape \(1,\) for 5 rows"):
        change_rewards(Constant(value=np.array([1.0])), ROLLOUTS, {})


class Given(AdvantageShaping):
    """Advantages as they are given."""

    value: object = None

    def shape(self, tokens, rollouts, weight, alpha):
        return self.value


def test_advantages_that_cannot_be_used_name_the_token():
    nan_outside = torch.where(MASK, 2.0, torch.nan)
    shaped = shape_advantages(Given(value=nan_outside), TOKENS, ROLLOUTS, WEIGHT, 0.0)
    assert torch.equal(shaped, torch.where(MASK, 2.0, TOKENS.advantages))
    nan_inside = nan_outside.clone()
    nan_inside[3, 1] = torch.nan
    with pytest.raises(ShapingError, match="returned nan for token 1 of row 3"):
        shape_advantages(Given(value=nan_inside), TOKENS, ROLLOUTS, WEIGHT, 0.0)
    with pytest.raises(ShapingError, match=r"shape \(5,\) for \(5, 3\)"):
        shape_advantages(Given(value=torch.ones(5)), TOKENS, ROLLOUTS, WEIGHT, 0.0)


def ares_rollouts(counts: list[int], accuracy: list[float], correct: list[float]) -> Rollouts:
    """Rollouts of so many high windows of one token: 1 nat each, 0 elsewhere."""
    entropy = torch.zeros(len(counts) + 1, 12)
    for row, count in enumerate(counts):
        entropy[row, 1 : 1 + count] = 1.0
    mask = torch.ones_like(entropy).bool()
    return rollouts_of(accuracy, correct, entropy=entropy, mask=mask)


def test_windows_follow_their_token():
    assert window_means(torch.tensor([5.0, 1.0, 2.0, 3.0]), 3).tolist() == [2.0]
    assert window_means(torch.tensor([5.0, 1.0, 2.0]), 3).tolist() == []


def test_ares_by_hand():
    memory = {
        "threshold": 0.5,
        **{f"next_target_{bucket}": 4.0 for bucket in ("easy", "medium", "hard")},
        **{f"gain_{bucket}": 0.5 for bucket in ("easy", "medium", "hard")},
    }
    part = Ares(window=1, threshold_ema=0.999, rate=0.0)
    rollouts = ares_rollouts([8, 4, 8, 2, 2, 9], [1.0, 0.5, 0.0], [1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    change, _ = part.change(rollouts, memory)
    sigma = lambda x, t: 1 / (1 + math.exp(-x / t))  # noqa: E731
    # easy: m = 1, correct delta 4: excess 3 > kappa 2, huber 3 - 1 = 2, 0.5 * 2 / 3; wrong: delta 0.
    assert change[0] == pytest.approx(-min(0.5, 0.5 * 2.0 / 3.0))
    assert change[1] == pytest.approx(0.6 * 0.5 * sigma(0.0, 2.0))
    # medium: m = 1, |4| - 1 = 3 = kappa: 9 / 6 = 1.5, 0.5 * 1.5 / 4.
    assert change[2] == pytest.approx(-0.5 * 1.5 / 4.0)
    assert change[3] == pytest.approx(0.8 * 0.5 * sigma(0.0, 2.5))
    # hard: cap 0.6, m = 1.4; correct delta -2 < -m: excess 0.6, huber 0.36 / 8, half of it; wrong: delta 5.
    assert change[4] == pytest.approx(-0.5 * 0.6 * (0.36 / 8) / 5.4)
    assert change[5] == pytest.approx(0.6 * sigma(5 - 1.4, 3.0))
    assert change[6] == 0.0


def test_ares_gains_move_by_the_distance_from_earlier_steps():
    part = Ares(window=1, rate=0.05, target_ema=0.5)
    high = ares_rollouts([6, 6, 6, 6], [1.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    low = ares_rollouts([4, 4, 4, 4], [1.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    _, first = part.change(low, {"threshold": 0.5})
    # The first step is its own target.
    assert (first["gain_easy"], first["target_easy"]) == (0.5, 4.0)
    _, second = part.change(high, first)
    # Two windows more than before: easy prompts are shaped harder, hard ones less.
    assert second["gain_easy"] == pytest.approx(0.5 + 0.05 * 2)
    assert second["gain_hard"] == pytest.approx(0.5 - 0.05 * 2)
    assert second["next_target_easy"] == 5.0
    assert "gain_medium" not in second


def test_ares_threshold_is_a_running_mean_of_the_steps():
    part = Ares(window=1, percentile=0.5, threshold_ema=0.75)
    mask = torch.ones(3, 3).bool()
    rollouts = rollouts_of([0.0], [0.0, 0.0], entropy=torch.full((3, 3), 0.4), mask=mask)
    _, memory = part.change(rollouts, {"threshold": 0.8})
    assert memory["threshold"] == pytest.approx(0.75 * 0.8 + 0.25 * 0.4)
