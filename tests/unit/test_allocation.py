from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from verl_aer import Groups
from verl_aer.parts.allocation import Allocation, AllocationError, Difficulty, Uniform, allocate
from verl_aer.rollouts.groups import group_rows


def prompts(*accuracy: float) -> Groups:
    """One row per prompt."""
    count = len(accuracy)
    return Groups(np.array(accuracy, dtype=float), np.full(count, 8), np.arange(count))


def test_linear_falls_from_one_to_zero_at_rho():
    # (0.5 - g) / 0.5 for g = 0, 1/8, 3/8; 0 from 0.5 on.
    weights = Difficulty(shape="linear", rho=0.5).weights(prompts(0, 0.125, 0.375, 0.5, 0.75, 1))
    assert weights.tolist() == [1.0, 0.75, 0.25, 0.0, 0.0, 0.0]


def test_step_is_one_below_rho_and_zero_at_it():
    assert Difficulty(shape="step", rho=0.5).weights(prompts(0, 0.49, 0.5, 1)).tolist() == [1, 1, 0, 0]


def test_a_rho_above_one_lets_every_prompt_explore():
    # (1.25 - g) / 1.25 at g = 1 is 0.2.
    assert Difficulty(rho=1.25).weights(prompts(0, 1)) == pytest.approx([1.0, 0.2])


def test_a_mean_weight_below_the_floor_is_lifted_to_it():
    # Mean 1/8: s = (0.25 - 0.125) / (1 - 0.125) = 1/7 of each prompt's distance to 1.
    weights = Difficulty(mean_floor=0.25).weights(prompts(0, 1, 1, 1, 1, 1, 1, 1))
    assert weights == pytest.approx([1.0, *[1 / 7] * 7])
    assert weights.mean() == pytest.approx(0.25)


def test_a_mean_weight_above_the_floor_is_left_alone():
    assert Difficulty(mean_floor=0.25).weights(prompts(0, 0.25, 1, 1)).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_the_floor_keeps_the_order_and_leaves_out_what_is_left_out():
    weights = Difficulty(mean_floor=0.3, include_all_wrong=False).weights(prompts(0, 0.375, 1, 1))
    # Left are 0.25, 0, 0: mean 1/16 of four; s = (0.3 - 1/16) / ((0.75 + 1 + 1) / 4).
    s = (0.3 - 0.0625) / 0.6875
    assert weights == pytest.approx([0.0, 0.25 + 0.75 * s, s, s])


def test_a_floor_that_cannot_be_reached_gives_all_that_explore_the_largest_weight():
    weights = Difficulty(mean_floor=0.9, include_all_wrong=False).weights(prompts(0, 0, 0.25, 1))
    assert weights.tolist() == [0.0, 0.0, 1.0, 1.0]


def with_entropy(groups: Groups, *entropy: float, initial_entropy: float | None = 0.4) -> Groups:
    return replace(groups, entropy=np.array(entropy), initial_entropy=initial_entropy)


def test_a_prompt_above_the_ceiling_gets_no_bonus():
    groups = with_entropy(prompts(0, 0, 0.25, 1), 0.5, 0.4, 0.2, 0.1)
    assert Difficulty(mean_floor=0.0).weights(groups).tolist() == [0.0, 1.0, 0.5, 0.0]
    assert Difficulty(mean_floor=0.0, entropy_ceiling=0.75).weights(groups).tolist() == [0.0, 0.0, 0.5, 0.0]
    assert Difficulty(mean_floor=0.0, entropy_ceiling=None).weights(groups).tolist() == [1.0, 1.0, 0.5, 0.0]


def test_the_floor_does_not_lift_a_prompt_above_the_ceiling():
    groups = with_entropy(prompts(0, 1, 1, 1), 0.5, 0.1, 0.5, 0.1)
    assert Difficulty(mean_floor=0.25).weights(groups) == pytest.approx([0.0, 0.5, 0.0, 0.5])


def test_without_h0_or_entropies_there_is_no_ceiling():
    groups = prompts(0, 0.25)
    assert Difficulty().weights(with_entropy(groups, 9.0, 9.0, initial_entropy=None)).tolist() == [1.0, 0.5]
    assert Difficulty().weights(replace(groups, initial_entropy=0.4)).tolist() == [1.0, 0.5]


def test_a_prompt_without_response_tokens_is_above_nothing():
    assert Difficulty().weights(with_entropy(prompts(0, 0), np.nan, 0.5)).tolist() == [1.0, 0.0]


def test_all_wrong_groups_can_be_left_out():
    weights = Difficulty(include_all_wrong=False).weights(prompts(0, 0.125, 1))
    assert weights.tolist() == [0.0, 0.75, 0.0]


def test_uniform_is_one_for_every_prompt_and_needs_no_accuracy():
    assert Uniform().weights(prompts(0, 0.5, 1)).tolist() == [1, 1, 1]
    assert not Uniform.uses_accuracy
    assert Difficulty.uses_accuracy


def test_every_row_of_a_prompt_gets_its_weight_and_padding_none():
    groups = Groups(np.array([0.0, 0.25]), np.array([2, 1]), np.array([1, -1, 0, 0, -1]))
    weights = allocate(Difficulty(rho=0.5), groups)
    assert weights.tolist() == [0.5, 0, 1, 1, 0]
    assert weights.dtype == np.float32


def test_uniform_leaves_padding_out_too():
    groups = Groups(np.array([0.0]), np.array([1]), np.array([-1, 0]))
    assert allocate(Uniform(), groups).tolist() == [0, 1]


def test_a_batch_of_padding_gets_zeros():
    assert allocate(Difficulty(), Groups(np.zeros(0), np.zeros(0), np.array([-1, -1]))).tolist() == [0, 0]


class Returning(Allocation):
    """An allocation of a user's own."""

    answer: object = None
    kind: ClassVar[str] = "mine"

    def weights(self, groups: Groups) -> np.ndarray:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5, -0.1], r"'mine' returned -0\.1 for prompt 1"),
        ([np.nan, 0.5], "'mine' returned nan for prompt 0"),
        ([np.inf, 0.5], "'mine' returned inf for prompt 0"),
        ([0.5], r"'mine' returned weights of shape \(1,\) for 2 prompts"),
    ],
)
def test_unusable_weights_of_a_users_own_allocation_are_refused(answer, message):
    with pytest.raises(AllocationError, match=message):
        allocate(Returning(answer=answer), prompts(0, 1))


def test_a_million_rows_are_grouped_and_weighted():
    count, size = 1 << 20, 8
    prompt = np.repeat(np.arange(count // size), size)
    uid = [f"prompt-{p:012d}" for p in prompt.tolist()]
    correct = np.random.default_rng(0).integers(0, 2, count).astype(float)
    groups = group_rows(
        uid, np.tile(np.arange(size), count // size), np.zeros(count, int), correct, np.zeros(count, bool)
    )
    weights = allocate(Difficulty(), groups)
    expected = np.maximum(0, 0.5 - correct.reshape(-1, size).mean(axis=1)) / 0.5
    assert np.array_equal(weights, np.repeat(expected, size).astype(np.float32))
