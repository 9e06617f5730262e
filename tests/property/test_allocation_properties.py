from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_aer.parts.allocation import Difficulty, Uniform, allocate
from verl_aer.rollouts.groups import group_rows

SHAPES = ("linear", "step")

PADDED = 4
"""Most padding rows that a generated batch has."""

difficulties = st.builds(
    Difficulty,
    shape=st.sampled_from(SHAPES),
    rho=st.floats(0.05, 2.0),
    include_all_wrong=st.booleans(),
    mean_floor=st.one_of(st.just(0.0), st.floats(0.0, 0.99)),
)
allocations = st.one_of(st.just(Uniform()), difficulties)


@st.composite
def batches(draw) -> dict:
    """Rows of 1 to 6 prompts, with 1 to 5 rollouts of 1 to 3 outputs each, in any order, some padding among them."""
    rows = []
    for prompt in range(draw(st.integers(1, 6))):
        for session in range(draw(st.integers(1, 5))):
            outputs = draw(st.integers(1, 3))
            for index in range(outputs):
                rows.append((f"p{prompt}", session, index, draw(st.sampled_from([0.0, 0.1, 0.3, 1.0])), False))
    for _ in range(draw(st.integers(0, PADDED))):
        # A copy of a real row, as veRL makes them.
        rows.append((*draw(st.sampled_from(rows))[:4], True))
    return columns(draw(st.permutations(rows)))


def columns(rows: list[tuple]) -> dict:
    uid, session, index, correct, is_padding = zip(*rows, strict=True)
    return {
        "uid": list(uid),
        "session": np.array(session),
        "index": np.array(index),
        "correct": np.array(correct),
        "is_padding": np.array(is_padding),
    }


def taken(batch: dict, order: np.ndarray) -> dict:
    return {
        name: [values[i] for i in order] if isinstance(values, list) else values[order]
        for name, values in batch.items()
    }


@given(batches(), allocations)
def test_weights_are_never_negative_and_zero_on_padding(batch, allocation):
    weights = allocate(allocation, group_rows(**batch))
    assert weights.shape == (len(batch["uid"]),)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert (weights[batch["is_padding"]] == 0).all()


@given(batches(), allocations)
def test_the_rollouts_of_one_prompt_get_one_weight(batch, allocation):
    weights = allocate(allocation, group_rows(**batch))
    for uid in set(batch["uid"]):
        rows = [u == uid and not pad for u, pad in zip(batch["uid"], batch["is_padding"], strict=True)]
        assert len(set(weights[rows].tolist())) == 1


@given(batches(), difficulties.filter(lambda d: d.mean_floor == 0))
def test_without_a_floor_weights_are_zero_from_rho_on(batch, allocation):
    groups = group_rows(**batch)
    weights = allocation.weights(groups)
    assert (weights[groups.accuracy >= allocation.rho] == 0).all()


@given(batches(), difficulties)
def test_the_mean_weight_is_at_least_the_floor(batch, allocation):
    groups = group_rows(**batch)
    weights = allocation.weights(groups)
    explores = (groups.accuracy > 0) | allocation.include_all_wrong
    assert weights.mean() >= min(allocation.mean_floor, explores.mean()) - 1e-12
    assert (weights >= allocation.model_copy(update={"mean_floor": 0.0}).weights(groups)).all()


@given(batches(), st.sampled_from(SHAPES), st.floats(0.05, 2.0), st.floats(0.0, 0.99))
def test_a_harder_prompt_never_gets_less(batch, shape, rho, floor):
    groups = group_rows(**batch)
    weights = Difficulty(shape=shape, rho=rho, mean_floor=floor).weights(groups)
    by_difficulty = weights[np.argsort(groups.accuracy, kind="stable")]
    # Lifted weights are rounded.
    assert (np.diff(by_difficulty) <= 1e-12).all()


@given(batches(), difficulties)
def test_weights_are_at_most_one(batch, allocation):
    assert (allocation.weights(group_rows(**batch)) <= 1 + 1e-12).all()


@given(batches(), allocations, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(batch, allocation, random):
    order = list(range(len(batch["uid"])))
    random.shuffle(order)
    shuffled = taken(batch, np.array(order))
    weights, moved = allocate(allocation, group_rows(**batch)), allocate(allocation, group_rows(**shuffled))
    # Bit for bit: sums over rollouts and over prompts are taken in one order.
    assert np.array_equal(weights[order], moved)


@given(batches(), allocations)
@pytest.mark.guards("T9")
def test_padding_changes_nothing_for_real_rows(batch, allocation):
    real = np.flatnonzero(~batch["is_padding"])
    with_padding, without = group_rows(**batch), group_rows(**taken(batch, real))
    assert np.array_equal(with_padding.accuracy, without.accuracy)
    assert np.array_equal(with_padding.size, without.size)
    assert np.array_equal(allocate(allocation, with_padding)[real], allocate(allocation, without))


@given(batches())
def test_accuracy_equals_the_mean_taken_prompt_by_prompt(batch):
    groups = group_rows(**batch)
    rows = list(zip(*(batch[name] for name in ("uid", "session", "index", "correct", "is_padding")), strict=True))
    last = {}
    for uid, session, index, correct, is_padding in rows:
        if not is_padding and index >= last.get((uid, session), (-1, 0.0))[0]:
            last[uid, session] = (index, correct)
    for row, (uid, *_, is_padding) in enumerate(rows):
        if is_padding:
            continue
        outcomes = [correct for (other, _), (_, correct) in last.items() if other == uid]
        prompt = groups.prompt_of_row[row]
        assert groups.size[prompt] == len(outcomes)
        assert np.isclose(groups.accuracy[prompt], np.mean(outcomes))
