from __future__ import annotations

import pytest
import torch

from verl_aer import get_part, part_names

MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
ENTROPY = torch.tensor(
    [
        [0.5, 0.1, 0.4, 0.2, 0.3, 9.0],
        [0.2, 9.0, 0.2, 0.2, 9.0, 0.2],
        [0.7, 9.0, 9.0, 9.0, 9.0, 9.0],
        [9.0, 9.0, 9.0, 9.0, 9.0, 9.0],
    ]
)


def weights(kind: str, **settings: float) -> torch.Tensor:
    return get_part("token_selection", kind)(**settings).weights(ENTROPY, MASK)


@pytest.mark.parametrize("kind", part_names("token_selection"))
def test_weights_are_of_the_mask_with_mean_one(kind):
    found = weights(kind)
    assert found.shape == ENTROPY.shape
    assert (found >= 0).all()
    assert (found[~MASK] == 0).all()
    # Each response counts for as much as it has tokens.
    assert torch.allclose(found.sum(dim=-1), MASK.sum(dim=-1).float(), rtol=1e-6)


def test_the_most_uncertain_tokens_of_each_response_count():
    # Five tokens: 5 - ceil(0.6 * 4) = 2 count, for 5/2 each.
    assert weights("top_quantile", quantile=0.6)[0].tolist() == [2.5, 0.0, 2.5, 0.0, 0.0, 0.0]
    # 0.8 of five: 5 - ceil(3.2) = 1.
    assert weights("top_quantile", quantile=0.8)[0].tolist() == [5.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_of_equal_entropies_the_earlier_count():
    # Four tokens: 4 - ceil(0.5 * 3) = 2.
    assert weights("top_quantile", quantile=0.5)[1].tolist() == [2.0, 0.0, 2.0, 0.0, 0.0, 0.0]


def test_one_token_always_counts():
    assert weights("top_quantile", quantile=0.99)[2].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_quantile_of_zero_is_all():
    assert torch.equal(weights("top_quantile", quantile=0.0), weights("all"))


def test_each_turn_counts_alike():
    # Turns of 1, 2 and 1 of four tokens: 4 / (3 * own).
    assert weights("turns")[1] == pytest.approx(torch.tensor([4 / 3, 0, 2 / 3, 2 / 3, 0, 4 / 3]), rel=1e-6)
    assert weights("turns")[0].tolist() == [1.0] * 5 + [0.0]


@pytest.mark.parametrize("kind", part_names("token_selection"))
def test_rows_do_not_depend_on_each_other(kind):
    part = get_part("token_selection", kind)()
    alone = torch.cat([part.weights(ENTROPY[i : i + 1], MASK[i : i + 1]) for i in range(len(MASK))])
    assert torch.equal(alone, part.weights(ENTROPY, MASK))
