"""A step's arithmetic: weights before the update, alpha frozen within it, one controller update after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from verl_aer import method_names, parse_entropy_config
from verl_aer.control.step import EntropySource, StepControl
from verl_aer.rollouts.groups import CorrectnessError
from verl_aer.rollouts.types import BatchRows, Tokens

ONES = torch.ones(5, 4)
TOKENS = Tokens(ONES, ONES.bool(), -ONES, ONES)
HALF = {"method": "aer", "target": {"tau": 0.5}, "controller": {"ki": 0.1}}


def rows(entropy: float | None, tokens: int = 4) -> BatchRows:
    """Two prompts of two rollouts; the first is never solved, the second always. One padding row of absurd values."""
    nats = None if entropy is None else np.array([entropy * tokens] * 4 + [1e9])
    return BatchRows(
        uid=["a", "a", "b", "b", "pad"],
        session=np.array([0, 1, 0, 1, 0]),
        index=np.zeros(5, dtype=int),
        is_padding=np.array([False] * 4 + [True]),
        reward=np.array([0.0, 0.0, 1.0, 1.0, 1.0]),
        acc=[0.0, 0.0, 1.0, 1.0, 1.0],
        acc_is_reward=np.zeros(5, dtype=bool),
        entropy_nats=nats,
        tokens=np.array([tokens] * 4 + [7]),
    )


class Run:
    """Calls a StepControl as the trainer does, and keeps what it gave to the workers."""

    def __init__(self, node: Mapping[str, Any], source: EntropySource = EntropySource.OLD_LOG_PROBS) -> None:
        self.control = StepControl(parse_entropy_config(node).resolve(100), source)
        self.weights: list[list[float]] = []
        self.sent: list[float] = []
        self.signals: list[dict[str, float]] = []
        self.shaped: list[torch.Tensor] = []

    def step(self, *updates: BatchRows, trains_actor: bool = True, tokens: Tokens = TOKENS) -> dict[str, float]:
        control = self.control
        control.begin(control.control.state.step + 1)
        for batch in updates:
            rollouts, weights = control.weigh(batch)
            self.weights.append(weights.tolist())
            control.shape_rewards(rollouts)
            if control.config.advantage_shaping.shapes:
                self.shaped.append(control.shape_advantages(tokens, rollouts, weights))
            if trains_actor:
                self.sent.append(control.control.alpha)
                self.signals.append(control.signal())
                control.add_update(nats=6.0, tokens=8.0)
        return control.finish()


def test_hard_prompts_get_the_weight_and_padding_gets_none():
    run = Run(HALF)
    metrics = run.step(rows(1.0))
    assert run.weights[0] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert metrics["aer/weight/mean"] == 0.5
    assert metrics["aer/weight/nonzero_frac"] == 0.5
    assert (metrics["aer/weight/hard"], metrics["aer/weight/easy"]) == (1.0, 0.0)
    assert (metrics["aer/accuracy/mean"], metrics["aer/accuracy/zero_frac"]) == (0.5, 0.5)


def reporting(acc: list[float | None], filled_in: bool) -> BatchRows:
    """Rows whose reward is ``acc`` where the reward function returns one number."""
    reward = np.array([0.0 if value is None else value for value in acc])
    return replace(rows(1.0), acc=acc, reward=reward, acc_is_reward=np.full(5, filled_in))


REWARDS = {
    "plus and minus one": ([1.0, -1.0, -1.0, 1.0, 0.0], True),
    "a reward model's scores": ([0.3, -2.5, 7.0, 0.1, 0.0], True),
    "ten": ([10.0, 10.0, 10.0, 10.0, 0.0], True),
    "a dict without acc": ([None] * 5, False),
    "a dict whose acc is none": ([1.5, -1.0, 0.0, float("nan"), 0.0], False),
}
WITH_ACCURACY = ["aer", "aer_allocation_only", "aer_absolute_target", "ceeh_me", "ceeh_ea", "ares"]
WITHOUT_ACCURACY = [
    *["none", "fixed", "aer_no_allocation", "aent", "skywork", "epo", "siren", "entropic"],
    *["steer", "clip_higher", "clip_cov", "kl_cov"],
]


def test_every_method_is_asked():
    assert sorted(WITHOUT_ACCURACY + WITH_ACCURACY) == method_names()
    for method in method_names():
        assert parse_entropy_config({"method": method}).uses_accuracy == (method in WITH_ACCURACY)


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("method", WITHOUT_ACCURACY)
def test_a_method_without_accuracy_runs_with_any_reward(caplog, method, reward):
    run = Run({"method": method})
    # The second step's rewards happen to be 1: what was no correctness before is none now.
    for batch in (reporting(*REWARDS[reward]), reporting([1.0] * 5, filled_in=True)):
        metrics = run.step(batch)
        assert metrics["aer/entropy"] == 1.0
        assert (metrics["aer/weight/mean"], metrics["aer/weight/nonzero_frac"]) == (1.0, 1.0)
        assert not [name for name in metrics if "accuracy" in name or name.endswith(("/hard", "/medium", "/easy"))]
    assert run.weights == [[1.0, 1.0, 1.0, 1.0, 0.0]] * 2
    assert caplog.text.count("left out from now on") == 1


@pytest.mark.parametrize("method", WITHOUT_ACCURACY)
def test_what_is_known_all_the_same_is_logged(method):
    metrics = Run({"method": method}).step(rows(1.0))
    assert (metrics["aer/accuracy/mean"], metrics["aer/accuracy/unreported"]) == (0.5, 0)
    assert metrics["aer/entropy/hard"] == 1.0


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("method", WITH_ACCURACY)
def test_a_method_with_accuracy_names_the_threshold(method, reward):
    with pytest.raises(CorrectnessError, match=r"entropy\.correctness\.threshold"):
        Run({"method": method}).step(reporting(*REWARDS[reward]))


def test_a_threshold_makes_correctness_of_a_reward_of_one_number():
    scored = reporting([0.3, 1.0, 0.3, 0.3, 0.0], filled_in=True)
    metrics = Run({"method": "aer", "correctness": {"threshold": 0.5}}).step(scored)
    assert metrics["aer/accuracy/mean"] == 0.25


def test_single_rollouts_without_correctness_are_wrong_counted_and_logged_once(caplog):
    run = Run({"method": "aer"})
    seen = [
        run.step(reporting([0.0, 0.0, 1.0, 1.0, 0.0], filled_in=False)),
        run.step(reporting([0.0, None, 1.0, None, None], filled_in=False)),
        run.step(reporting([None] * 5, filled_in=False)),
    ]
    assert [metrics["aer/accuracy/mean"] for metrics in seen] == [0.5, 0.25, 0.0]
    # A padding row is no rollout.
    assert [metrics["aer/accuracy/unreported"] for metrics in seen] == [0, 2, 4]
    assert caplog.text.count("they count as wrong") == 1


def test_a_rollout_of_several_outputs_without_correctness_is_one():
    # The first two rows are two outputs of one rollout.
    outputs = replace(
        reporting([None, None, 1.0, 1.0, 0.0], filled_in=False),
        session=np.array([0, 0, 0, 1, 0]),
        index=np.array([0, 1, 0, 0, 0]),
    )
    assert Run({"method": "aer"}).step(outputs)["aer/accuracy/unreported"] == 1


def test_single_rollouts_without_correctness_may_end_the_run():
    batch = reporting([0.0, None, 1.0, 1.0, 0.0], filled_in=False)
    strict = {"correctness": {"on_missing": "error"}}
    with pytest.raises(CorrectnessError, match=r"row 1.*entropy\.correctness\.on_missing=wrong"):
        Run({"method": "aer", **strict}).step(batch)
    # Not a run that does not need it.
    assert "aer/accuracy/mean" not in Run({"method": "fixed", **strict}).step(batch)


@pytest.mark.guards("bug 2", "T23")
def test_several_local_updates_are_one_controller_update():
    run = Run(HALF)
    # 4 · 4 tokens of 1.0 nat and 4 · 12 tokens of 0.5: (16 + 24) / 64, not the mean of the two means.
    metrics = run.step(rows(1.0, tokens=4), rows(0.5, tokens=12))
    assert metrics["aer/entropy"] == pytest.approx(0.625, abs=1e-15)
    assert run.control.control.state.updates == 1
    assert run.sent == [0.0, 0.0]


def test_metrics_by_difficulty_are_of_all_local_updates():
    metrics = Run(HALF).step(rows(1.0, tokens=4), rows(0.5, tokens=12))
    # Prompt "a" is hard and "b" easy in both: 2 · 4 tokens of 1.0 nat and 2 · 12 tokens of 0.5 each.
    assert metrics["aer/entropy/hard"] == metrics["aer/entropy/easy"] == pytest.approx(0.625, abs=1e-15)
    assert metrics["aer/weight/mean"] == 0.5


def test_the_penaltys_numbers_are_of_this_steps_entropy():
    run = Run({"method": "siren"})
    first, second = run.step(rows(1.0)), run.step(rows(0.75))
    # The first step is the anchor; the second is a quarter below it.
    assert run.signals == [{"pull": 0.0}, {"pull": 0.5}]
    assert (first["aer/bonus_slope"], second["aer/bonus_slope"]) == (0.0, 0.5)


def test_what_is_pushed_by_response_is_measured_by_response():
    # Two of the four rollouts are three times as long: their tokens have half a nat, the others' one.
    long = replace(rows(1.0), tokens=np.array([12.0, 12.0, 4.0, 4.0, 7.0]), entropy_nats=np.array([6.0, 6, 4, 4, 1e9]))
    assert Run({"method": "aer"}).step(long)["aer/entropy"] == 20 / 32
    by_response = Run({"method": "aer", "aggregation": "seq-mean-token-mean"})
    assert by_response.step(long)["aer/entropy"] == (0.5 + 0.5 + 1 + 1) / 4


def test_questions_are_remembered_between_steps_and_weigh():
    run = Run({"method": "ceeh_me", "controller": {"total_steps": 9}, "reward_shaping": {"kind": "none"}})
    metrics = run.step(replace(rows(1.0), question=["x", "x", "y", "y", "x"]))
    # x was never solved and is below the mean of the two, y is not; padding is a copy of x and gets nothing.
    assert run.weights[0] == [5.0, 5.0, 1.0, 1.0, 0.0]
    assert metrics["aer/question_memory/size"] == 2
    run.step(replace(rows(1.0), question=["x", "x", "z", "z", "x"]))
    questions = run.control.memory.questions.questions
    assert questions["x"].step == 2
    assert set(questions) == {"x", "y", "z"}


def test_a_token_outside_the_mask_keeps_its_advantage():
    mask = torch.ones(5, 4).bool()
    mask[0, 2:] = False
    entropy = torch.full((5, 4), float("nan")).where(~mask, torch.ones(5, 4))
    run = Run({"method": "steer"})
    run.step(rows(1.0), tokens=Tokens(ONES, mask, -ONES, entropy))
    (shaped,) = run.shaped
    assert shaped[0, 2:].tolist() == [1.0, 1.0]
    assert torch.isfinite(shaped).all()


def test_without_an_actor_update_nothing_is_observed():
    run = Run(HALF)
    metrics = run.step(rows(1.0), trains_actor=False)
    assert "aer/entropy" not in metrics
    assert (metrics["aer/alpha"], metrics["aer/alpha_next"]) == (0.0, 0.0)
    assert run.control.control.state.step == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entropy_that_is_not_finite_is_skipped_counted_and_logged(caplog, bad):
    run = Run(HALF)
    seen = [run.step(rows(entropy)) for entropy in (1.0, 0.25, bad, 0.25)]
    assert seen[2]["aer/alpha_next"] == seen[2]["aer/alpha"] == 0.025
    assert seen[3]["aer/skipped_updates"] == 1
    assert run.sent == [0.0, 0.0, 0.025, 0.025]
    assert "the controller skips it" in caplog.text


def test_a_missing_entropy_is_an_error_outside_bypass_mode():
    with pytest.raises(KeyError, match="entropy"):
        Run(HALF).step(rows(None))


def of_prompts(hard: float, easy: float) -> BatchRows:
    """Like ``rows``, with an entropy for each prompt; the hard prompt's responses have 3 and 1 tokens."""
    tokens = np.array([3, 1, 2, 2, 7])
    nats = np.array([2 * hard, 2 * hard, 2 * easy, 2 * easy, 1e9])
    return replace(rows(1.0), tokens=tokens, entropy_nats=nats)


def test_a_prompt_above_h0_gets_no_bonus():
    run = Run(HALF)
    for prompts in [(1.0, 1.0), (1.01, 0.0), (0.99, 0.0)]:
        run.step(of_prompts(*prompts))
    first, above, below = run.weights
    assert first == below == [1.0, 1.0, 0.0, 0.0, 0.0]
    # What is left explores instead, until the mean weight of the two prompts is the floor of 0.1.
    assert above == pytest.approx([0.0, 0.0, 0.2, 0.2, 0.0])


def test_where_responses_count_alike_a_prompts_entropy_is_their_mean():
    # Responses of 2/3 and 2 nats per token: 1 by tokens, 4/3 by responses.
    run = Run({**HALF, "aggregation": "seq-mean-token-mean", "allocation": {"mean_floor": 0.0}})
    run.step(replace(rows(1.0), entropy_nats=np.array([4.4, 4.4, 4.4, 4.4, 1e9])))
    run.step(of_prompts(1.0, 0.0))
    assert run.control.control.state.initial_entropy == pytest.approx(1.1)
    assert run.weights[1] == [0.0] * 5


def test_in_bypass_mode_no_prompt_is_above_the_ceiling():
    run = Run(HALF, EntropySource.UPDATE)
    run.step(rows(None)), run.step(rows(None))
    assert run.weights[1] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_hard_prompts_above_h0_are_warned_of_once(caplog):
    run = Run({**HALF, "allocation": {"entropy_ceiling": None}})
    for prompts in [(1.0, 1.0), (0.4, 0.0), (1.5, 0.0), (1.5, 0.0)]:
        run.step(of_prompts(*prompts))
    (warning,) = [record.message for record in caplog.records if "hard prompts" in record.message]
    assert warning.startswith("step 3: the entropy of hard prompts is 1.5 nats per token, above the initial level of 1")
