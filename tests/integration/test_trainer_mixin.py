"""The order of a step: weights before the update, constant α within it, one controller update after it."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from verl.trainer.ppo.v1 import get_trainer_cls

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer import method_names, parse_entropy_config
from verl_aer.config.schema import ConfigError, Problem
from verl_aer.control.state_file import save_state
from verl_aer.integration import trainer as module
from verl_aer.integration.loss import ALPHA_KEY, SIGNAL_KEY, UPDATE_ENTROPY_NATS, UPDATE_TOKENS, WEIGHTED_ROWS_KEY
from verl_aer.integration.measure_request import MEASURE_KEY
from verl_aer.integration.preflight import CheckedConfig, Note, read_entropy_config
from verl_aer.rollouts.groups import CorrectnessError
from verl_aer.rollouts.types import BatchRows, Tokens


def composed(*overrides: str):
    """A config of the caller's: trainers write into theirs."""
    return copy.deepcopy(composed_once(*overrides))


@functools.cache
def composed_once(*overrides: str):
    method = next((override for override in overrides if override.startswith("entropy=")), "entropy=aer")
    others = [override for override in overrides if override != method]
    with initialize_config_module("verl.trainer.config", version_base=None):
        fixed = [f"+{method}", "+hardware=cpu", "actor_rollout_ref.rollout.n=2"]
        return compose("ppo_trainer", overrides=[*fixed, *others])


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


class Base:
    """Stands for veRL's trainer: a step of ``local_updates`` updates, of which some may skip the actor."""

    local_updates = 1
    update_actor = True
    total_training_steps = 100
    hands_the_batch_on = False
    resumed_step = 0

    def __init__(self, config) -> None:
        self.config = config
        self.global_steps = 0
        self.sent: list[float] = []
        self.signals: list[str] = []

    def get_reward_handles(self) -> list | None:
        """veRL's: None where a reward model shares the actor's devices."""
        return []

    def step(self, metrics: dict, timing_raw: dict):
        for _ in range(self.local_updates):
            batch = self._compute_old_log_prob(SimpleNamespace(extra_info={}), metrics=metrics)
            batch = self._compute_advantage(batch, metrics=metrics)
            if self.update_actor:
                batch = self._update_actor(batch, metrics=metrics)
        return batch

    def _compute_old_log_prob(self, batch, metrics: dict):
        self.measured_with = batch.extra_info.get(MEASURE_KEY)
        # veRL's trainers hand the batch with its extra information on, or another one.
        return batch if self.hands_the_batch_on else SimpleNamespace(extra_info={})

    def _validate(self):
        """veRL's validation generates and scores; it neither computes advantages nor updates."""
        return {}

    def _compute_advantage(self, batch, metrics: dict):
        return batch

    def _load_checkpoint(self):
        self.global_steps = self.resumed_step

    def _update_actor(self, batch, metrics: dict):
        assert len(batch.weights), "the batch that came back with the weights must be used"
        self.sent.append(batch.extra_info[ALPHA_KEY])
        self.signals.append(batch.extra_info[SIGNAL_KEY])
        self.of_weighted_rows = batch.extra_info[WEIGHTED_ROWS_KEY]
        self.pushed_with = batch.extra_info.get(MEASURE_KEY)
        metrics.update({UPDATE_ENTROPY_NATS: 6.0, UPDATE_TOKENS: 8.0})
        return batch


class Trainer(module.EntropyTrainerMixin, Base):
    pass


def without_problems(config) -> CheckedConfig:
    return CheckedConfig(read_entropy_config(config), [], [])


@pytest.fixture
def make(monkeypatch):
    """A trainer whose batches hold ``queue``'s rows; ``weights`` collects what is sent."""
    monkeypatch.setattr(module, "check_config", without_problems)

    def build(*overrides: str, queue: list[BatchRows]):
        trainer = Trainer(composed(*overrides))
        trainer._load_checkpoint()
        trainer.weights = []
        monkeypatch.setattr(module, "read_rows", lambda batch, config, reward_is_colocated: queue.pop(0))

        def attach(batch, weights):
            trainer.weights.append(weights)
            return SimpleNamespace(extra_info=batch.extra_info, weights=weights)

        monkeypatch.setattr(module, "attach_weights", attach)
        return trainer

    return build


def run_step(trainer) -> dict[str, float]:
    trainer.global_steps += 1
    metrics: dict[str, float] = {}
    trainer.step(metrics, {})
    return metrics


MODES = [("sync", 1), ("colocate_async", 1), ("separate_async", 3)]
"""veRL's trainer modes, each with the local updates of a step that it is tried with."""
PLAIN_REWARD = ["entropy/reward_shaping=none"]
HALF = ["entropy.target.tau=0.5", "entropy.controller.ki=0.1"]


def test_alpha_goes_out_before_it_moves(make):
    trainer = make(*HALF, queue=[rows(1.0), rows(0.25), rows(0.25)])
    seen = [run_step(trainer) for _ in range(3)]
    assert trainer.of_weighted_rows
    # H₀ = 1, H* = 0.5: step 2 sees 0.25 and lifts α by 0.1 · 0.25, which step 3 trains with.
    assert trainer.sent == [0.0, 0.0, 0.025]
    assert [metrics["aer/alpha"] for metrics in seen] == trainer.sent
    assert [metrics["aer/entropy"] for metrics in seen] == [1.0, 0.25, 0.25]
    assert seen[2]["aer/alpha_next"] == 0.05


def test_what_is_measured_is_what_is_pushed(make):
    trainer = make("entropy=aent", "entropy.measure.p=0.3", queue=[rows(1.0)])
    run_step(trainer)
    assert trainer.measured_with == trainer.pushed_with == '{"kind": "clamped", "p": 0.3}'
    plain = make("entropy=aer", queue=[rows(1.0)])
    run_step(plain)
    assert (plain.measured_with, plain.pushed_with) == (None, None)


CLAMPED, NUCLEUS = '{"kind": "clamped", "p": 0.2}', '{"kind": "nucleus", "p": 0.8}'
BYPASS = "algorithm.rollout_correction.bypass_mode=true"


@pytest.mark.parametrize("hands_the_batch_on", [False, True])
@pytest.mark.parametrize(
    ("measured", "pushed", "asked"),
    [
        ("sampled", "full", (None, None)),
        ("full", "clamped", (None, CLAMPED)),
        ("clamped", "full", (CLAMPED, None)),
        ("clamped", "nucleus", (CLAMPED, NUCLEUS)),
        ("clamped", "sampled", (CLAMPED, None)),
        ("clamped", "same", (CLAMPED, CLAMPED)),
    ],
)
def test_each_pass_is_asked_for_what_it_is_for(make, measured, pushed, asked, hands_the_batch_on):
    kinds = [f"entropy.measure.kind={measured}", f"entropy.pushed.kind={pushed}"]
    trainer = make("entropy=fixed", *kinds, queue=[rows(1.0)])
    trainer.hands_the_batch_on = hands_the_batch_on
    run_step(trainer)
    assert (trainer.measured_with, trainer.pushed_with) == asked


@pytest.mark.parametrize(
    ("measured", "pushed", "asked"),
    [
        ("sampled", "full", None),
        ("sampled", "clamped", CLAMPED),
        ("clamped", "sampled", CLAMPED),
        ("full", "sampled", None),
        ("clamped", "same", CLAMPED),
    ],
)
def test_in_bypass_mode_the_update_is_asked_for_both(make, measured, pushed, asked):
    kinds = [f"entropy.measure.kind={measured}", f"entropy.pushed.kind={pushed}"]
    trainer = make("entropy=fixed", BYPASS, *kinds, queue=[rows(None)])
    run_step(trainer)
    assert trainer.pushed_with == asked


@pytest.mark.parametrize(
    ("method", "overrides", "from_log_probs"),
    [
        # What is pushed, and what the update measures: the measured one in bypass mode alone.
        ("skywork", [], (False, False)),
        ("skywork", [BYPASS], (False, True)),
        ("ceeh_me", [], (True, True)),
        ("aent", ["entropy.pushed.kind=sampled"], (True, True)),
        ("aent", ["entropy.pushed.kind=sampled", BYPASS], (True, False)),
        ("aent", [BYPASS], (False, False)),
    ],
)
def test_the_loss_is_told_what_is_pushed_and_what_is_measured(make, method, overrides, from_log_probs):
    micro_batch = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"
    trainer = make(f"entropy={method}", micro_batch, *overrides, queue=[])
    sent = []
    trainer.actor_rollout_wg = SimpleNamespace(set_loss_fn=sent.append)
    trainer.total_training_steps = 9
    trainer._install_loss()
    assert (sent[0].keywords["from_log_probs"], sent[0].keywords["measured_from_log_probs"]) == from_log_probs


@pytest.mark.parametrize(("uses_reference", "expected"), [(False, ["actor"]), (True, ["actor", "reference"])])
def test_each_worker_of_the_run_is_asked_once_to_take_our_engine(make, monkeypatch, uses_reference, expected):
    asked = []

    @dataclass(frozen=True)
    class Worker:
        name: str

        @property
        def __ray_call__(self) -> SimpleNamespace:
            return SimpleNamespace(remote=lambda function: asked.append((self.name, function)))

    monkeypatch.setattr(module.ray, "get", list)
    trainer = make(queue=[])
    trainer.use_reference_policy = uses_reference
    trainer.actor_rollout_wg = SimpleNamespace(workers=[Worker("actor")])
    # Actor and reference policy may share their workers.
    trainer.ref_policy_wg = SimpleNamespace(workers=[Worker("actor"), Worker("reference")])
    trainer._install_engines()
    assert sorted(name for name, _ in asked) == expected
    assert {function for _, function in asked} == {module.install_entropy_engines}


def test_a_bonus_that_is_only_noise_is_warned_of_at_the_start(make, caplog, monkeypatch):
    monkeypatch.setattr(Base, "_setup", lambda self: None, raising=False)
    monkeypatch.setattr(Trainer, "_install_loss", lambda self: None)
    monkeypatch.setattr(Trainer, "_install_engines", lambda self: None)
    on_policy = ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]

    def warned(*overrides: str) -> bool:
        caplog.clear()
        make(*on_policy, *overrides, queue=[])._setup()
        return [record.levelname for record in caplog.records] == ["WARNING"] and "expected gradient" in caplog.text

    assert warned("entropy=ceeh_me")
    assert warned("entropy=fixed", "entropy.pushed.kind=sampled")
    assert not warned("entropy=ceeh_me", "actor_rollout_ref.actor.ppo_mini_batch_size=4")
    assert not warned("entropy=ceeh_me", "actor_rollout_ref.actor.ppo_epochs=2")
    assert not warned("entropy=ceeh_me", "entropy.pushed.kind=full")
    assert not warned("entropy=ceeh_me", "entropy.regularizer.kind=none")
    # Measured alone it is as good as any, and a coefficient of 0 pushes nothing.
    assert not warned("entropy=skywork")
    assert not warned("entropy=none", "entropy.pushed.kind=sampled")


def test_hard_prompts_get_the_weight_and_padding_gets_none(make):
    trainer = make(*HALF, queue=[rows(1.0)])
    metrics = run_step(trainer)
    assert trainer.weights[0].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
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
LENGTH_OF_RUN = {"epo": ["entropy.regularizer.total_steps=9"]}
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
def test_a_method_without_accuracy_runs_with_any_reward(make, monkeypatch, caplog, method, reward):
    ones = torch.ones(5, 4)
    monkeypatch.setattr(module, "read_tokens", lambda *args: Tokens(ones, ones.bool(), -ones, ones))
    monkeypatch.setattr(module, "write_advantages", lambda batch, shaped: batch)
    queue = [reporting(*REWARDS[reward]), reporting([1.0] * 5, filled_in=True)]
    trainer = make(f"entropy={method}", *LENGTH_OF_RUN.get(method, []), queue=queue)
    # The second step's rewards happen to be 1: what was no correctness before is none now.
    for metrics in (run_step(trainer), run_step(trainer)):
        assert metrics["aer/entropy"] == 1.0
        assert (metrics["aer/weight/mean"], metrics["aer/weight/nonzero_frac"]) == (1.0, 1.0)
        assert not [name for name in metrics if "accuracy" in name or name.endswith(("/hard", "/medium", "/easy"))]
    assert [weights.tolist() for weights in trainer.weights] == [[1.0, 1.0, 1.0, 1.0, 0.0]] * 2
    assert caplog.text.count("left out from now on") == 1


@pytest.mark.parametrize("method", WITHOUT_ACCURACY)
def test_what_is_known_all_the_same_is_logged(make, monkeypatch, method):
    ones = torch.ones(5, 4)
    monkeypatch.setattr(module, "read_tokens", lambda *args: Tokens(ones, ones.bool(), -ones, ones))
    monkeypatch.setattr(module, "write_advantages", lambda batch, shaped: batch)
    metrics = run_step(make(f"entropy={method}", queue=[rows(1.0)]))
    assert (metrics["aer/accuracy/mean"], metrics["aer/accuracy/unreported"]) == (0.5, 0)
    assert metrics["aer/entropy/hard"] == 1.0


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("method", WITH_ACCURACY)
def test_a_method_with_accuracy_names_the_threshold(make, method, reward):
    trainer = make(f"entropy={method}", queue=[reporting(*REWARDS[reward])])
    with pytest.raises(CorrectnessError, match=r"entropy\.correctness\.threshold"):
        run_step(trainer)


def test_a_threshold_makes_correctness_of_a_reward_of_one_number(make):
    scored = reporting([0.3, 1.0, 0.3, 0.3, 0.0], filled_in=True)
    metrics = run_step(make("entropy=aer", "entropy.correctness.threshold=0.5", queue=[scored]))
    assert metrics["aer/accuracy/mean"] == 0.25


def test_single_rollouts_without_correctness_are_wrong_counted_and_logged_once(make, caplog):
    queue = [
        reporting([0.0, 0.0, 1.0, 1.0, 0.0], filled_in=False),
        reporting([0.0, None, 1.0, None, None], filled_in=False),
        reporting([None] * 5, filled_in=False),
    ]
    trainer = make("entropy=aer", queue=queue)
    seen = [run_step(trainer) for _ in range(3)]
    assert [metrics["aer/accuracy/mean"] for metrics in seen] == [0.5, 0.25, 0.0]
    # A padding row is no rollout.
    assert [metrics["aer/accuracy/unreported"] for metrics in seen] == [0, 2, 4]
    assert caplog.text.count("they count as wrong") == 1


def test_a_rollout_of_several_outputs_without_correctness_is_one(make):
    # The first two rows are two outputs of one rollout.
    outputs = replace(
        reporting([None, None, 1.0, 1.0, 0.0], filled_in=False),
        session=np.array([0, 0, 0, 1, 0]),
        index=np.array([0, 1, 0, 0, 0]),
    )
    assert run_step(make("entropy=aer", queue=[outputs]))["aer/accuracy/unreported"] == 1


def test_single_rollouts_without_correctness_may_end_the_run(make):
    queue = [reporting([0.0, None, 1.0, 1.0, 0.0], filled_in=False) for _ in range(2)]
    with pytest.raises(CorrectnessError, match=r"row 1.*entropy\.correctness\.on_missing=wrong"):
        run_step(make("entropy=aer", "entropy.correctness.on_missing=error", queue=queue[:1]))
    # Not a run that does not need it.
    assert "aer/accuracy/mean" not in run_step(
        make("entropy=fixed", "entropy.correctness.on_missing=error", queue=queue[1:])
    )


def test_only_a_colocated_reward_model_reports_in_columns(make, monkeypatch):
    asked = []
    trainer = make(*HALF, queue=[rows(1.0), rows(1.0)])
    read = module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda *args, **more: asked.append(more) or read(*args, **more))
    run_step(trainer)
    monkeypatch.setattr(Base, "get_reward_handles", lambda self: None)
    run_step(trainer)
    assert asked == [{"reward_is_colocated": False}, {"reward_is_colocated": True}]


@pytest.mark.guards("bug 2", "T23")
def test_several_local_updates_are_one_controller_update(make):
    # 4 · 4 tokens of 1.0 nat and 4 · 12 tokens of 0.5: (16 + 24) / 64, not the mean of the two means.
    trainer = make(*HALF, queue=[rows(1.0, tokens=4), rows(0.5, tokens=12)])
    trainer.local_updates = 2
    metrics = run_step(trainer)
    assert metrics["aer/entropy"] == pytest.approx(0.625, abs=1e-15)
    assert trainer.step_control.control.state.updates == 1
    assert trainer.sent == [0.0, 0.0]


def test_metrics_by_difficulty_are_of_all_local_updates(make):
    trainer = make(*HALF, queue=[rows(1.0, tokens=4), rows(0.5, tokens=12)])
    trainer.local_updates = 2
    metrics = run_step(trainer)
    # Prompt "a" is hard and "b" easy in both: 2 · 4 tokens of 1.0 nat and 2 · 12 tokens of 0.5 each.
    assert metrics["aer/entropy/hard"] == metrics["aer/entropy/easy"] == pytest.approx(0.625, abs=1e-15)
    assert metrics["aer/weight/mean"] == 0.5


def test_the_penaltys_numbers_are_of_this_steps_entropy(make):
    trainer = make("entropy=siren", queue=[rows(1.0), rows(0.75)])
    first, second = run_step(trainer), run_step(trainer)
    # The first step is the anchor; the second is a quarter below it.
    assert [json.loads(signal) for signal in trainer.signals] == [{"pull": 0.0}, {"pull": 0.5}]
    assert (first["aer/bonus_slope"], second["aer/bonus_slope"]) == (0.0, 0.5)


def test_what_is_pushed_by_response_is_measured_by_response(make):
    # Two of the four rollouts are three times as long: their tokens have half a nat, the others' one.
    long = replace(rows(1.0), tokens=np.array([12.0, 12.0, 4.0, 4.0, 7.0]), entropy_nats=np.array([6.0, 6, 4, 4, 1e9]))
    by_token = make("entropy=aer", queue=[long])
    assert run_step(by_token)["aer/entropy"] == 20 / 32
    by_response = make("entropy=aer", "entropy.aggregation=seq-mean-token-mean", queue=[long])
    assert run_step(by_response)["aer/entropy"] == (0.5 + 0.5 + 1 + 1) / 4


def test_questions_are_remembered_between_steps_and_weigh(make):
    asked = [replace(rows(1.0), question=names) for names in (["x", "x", "y", "y", "x"], ["x", "x", "z", "z", "x"])]
    trainer = make("entropy=ceeh_me", "entropy.controller.total_steps=9", *PLAIN_REWARD, queue=asked)
    metrics = run_step(trainer)
    # x was never solved and is below the mean of the two, y is not; padding is a copy of x and gets nothing.
    assert trainer.weights[0].tolist() == [5.0, 5.0, 1.0, 1.0, 0.0]
    assert metrics["aer/question_memory/size"] == 2
    run_step(trainer)
    assert trainer.step_control.memory.questions.questions["x"].step == 2
    assert set(trainer.step_control.memory.questions.questions) == {"x", "y", "z"}


def test_rewards_are_shaped_before_and_advantages_after_verls_estimator(make, monkeypatch):
    order = []
    trainer = make("entropy=ceeh_ea", queue=[replace(rows(1.0), question=["x", "x", "y", "y", "x"])])
    monkeypatch.setattr(Base, "_compute_advantage", lambda self, batch, metrics: order.append("veRL") or batch)
    monkeypatch.setattr(module, "add_rewards", lambda batch, change: order.append("rewards") or batch)
    ones = torch.ones(5, 4)
    tokens = Tokens(ones, ones.bool(), -ones, ones)
    monkeypatch.setattr(module, "read_tokens", lambda *args: tokens)
    written = []
    monkeypatch.setattr(
        module, "write_advantages", lambda batch, shaped: written.append(shaped) or order.append("advantages") or batch
    )
    metrics = run_step(trainer)
    assert order == ["rewards", "veRL", "advantages"]
    # Only the hard question's rows: 1 + min(0.4 * 1, 1 / 2).
    assert written[0][:, 0].tolist() == pytest.approx([1.4, 1.4, 1.0, 1.0, 1.0])
    assert metrics["aer/advantage_change"] == pytest.approx(0.4 * 2 / 5)
    assert metrics["aer/reward_change"] == 0.0


def test_a_token_outside_the_mask_keeps_its_advantage(make, monkeypatch):
    trainer = make("entropy=steer", queue=[rows(1.0)])
    advantages = torch.ones(5, 4)
    mask = torch.ones(5, 4).bool()
    mask[0, 2:] = False
    tokens = Tokens(
        advantages, mask, -torch.ones(5, 4), torch.full((5, 4), float("nan")).where(~mask, torch.ones(5, 4))
    )
    monkeypatch.setattr(module, "read_tokens", lambda *args: tokens)
    written = []
    monkeypatch.setattr(module, "write_advantages", lambda batch, shaped: written.append(shaped) or batch)
    run_step(trainer)
    assert written[0][0, 2:].tolist() == [1.0, 1.0]
    assert torch.isfinite(written[0]).all()


def test_without_an_actor_update_nothing_is_observed(make):
    trainer = make(*HALF, queue=[rows(1.0)])
    trainer.update_actor = False
    metrics = run_step(trainer)
    assert "aer/entropy" not in metrics
    assert (metrics["aer/alpha"], metrics["aer/alpha_next"]) == (0.0, 0.0)
    assert trainer.step_control.control.state.step == 0


@pytest.mark.guards("bug 4")
def test_evaluation_leaves_the_control_alone(make):
    trainer = make(*HALF, queue=[rows(1.0), rows(0.25), rows(0.25)])
    run_step(trainer)
    before = trainer.step_control.control.state
    trainer._validate()
    assert trainer.step_control.control.state is before
    run_step(trainer)
    trainer._validate()
    assert run_step(trainer)["aer/updates"] == 3


@pytest.mark.guards("T22")
def test_the_controlled_entropy_is_read_before_rejection_cuts_the_mask(make, monkeypatch):
    trainer = make(*HALF, queue=[rows(1.0)])
    order = []
    read = module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda *args, **more: order.append("read") or read(*args, **more))
    monkeypatch.setattr(Base, "_compute_advantage", lambda self, batch, metrics: order.append("reject") or batch)
    run_step(trainer)
    assert order == ["read", "reject"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entropy_that_is_not_finite_is_skipped_counted_and_logged(make, caplog, bad):
    trainer = make(*HALF, queue=[rows(1.0), rows(0.25), rows(bad), rows(0.25)])
    seen = [run_step(trainer) for _ in range(4)]
    assert seen[2]["aer/alpha_next"] == seen[2]["aer/alpha"] == 0.025
    assert seen[3]["aer/skipped_updates"] == 1
    assert trainer.sent == [0.0, 0.0, 0.025, 0.025]
    assert "the controller skips it" in caplog.text


@pytest.mark.guards("T23")
def test_bypass_mode_controls_the_workers_own_entropy(make):
    bypass = "algorithm.rollout_correction.bypass_mode=true"
    trainer = make(*HALF, bypass, queue=[rows(None)])
    metrics = run_step(trainer)
    assert metrics["aer/entropy"] == 0.75  # 6 nats over 8 tokens
    # That of all rows: it is the controlled one.
    assert not trainer.of_weighted_rows


def test_a_missing_entropy_is_an_error_elsewhere(make):
    trainer = make(*HALF, queue=[rows(None)])
    with pytest.raises(KeyError, match="entropy"):
        run_step(trainer)


@pytest.mark.guards("bug 11")
def test_the_workers_halves_become_one_token_mean(make):
    metrics = run_step(make(*HALF, queue=[rows(1.0)]))
    assert metrics["actor/aer/entropy"] == 0.75
    assert not {UPDATE_ENTROPY_NATS, UPDATE_TOKENS} & set(metrics)


def test_a_resumed_run_says_which_settings_changed_and_keeps_its_h0(make, tmp_path, caplog):
    folder = f"trainer.default_local_dir={tmp_path}"
    first = make(*HALF, folder, queue=[rows(1.0), rows(0.25)])
    run_step(first), run_step(first)
    save_state(tmp_path / "global_step_2" / "aer_state.json", first.step_control.control.state, first.entropy_config)
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path / 'global_step_2'}"]
    second = make("entropy.target.tau=0.5", "entropy.controller.alpha_max=0.01", folder, *resume, queue=[rows(0.25)])
    second.resumed_step = 2
    second._load_checkpoint()
    assert "entropy.controller.ki was 0.1 and is now 0.05" in caplog.text
    assert "alpha was 0.025 and is now 0.01" in caplog.text
    metrics = run_step(second)
    assert (metrics["aer/alpha"], metrics["aer/initial_entropy"], metrics["aer/updates"]) == (0.01, 1.0, 3)


def of_prompts(hard: float, easy: float) -> BatchRows:
    """Like ``rows``, with an entropy for each prompt; the hard prompt's responses have 3 and 1 tokens."""
    tokens = np.array([3, 1, 2, 2, 7])
    nats = np.array([2 * hard, 2 * hard, 2 * easy, 2 * easy, 1e9])
    return replace(rows(1.0), tokens=tokens, entropy_nats=nats)


def test_a_prompt_above_h0_gets_no_bonus(make):
    trainer = make(*HALF, queue=[of_prompts(1.0, 1.0), of_prompts(1.01, 0.0), of_prompts(0.99, 0.0)])
    for _ in range(3):
        run_step(trainer)
    first, above, below = (weights.tolist() for weights in trainer.weights)
    assert first == below == [1.0, 1.0, 0.0, 0.0, 0.0]
    # What is left explores instead, until the mean weight of the two prompts is the floor of 0.1.
    assert above == pytest.approx([0.0, 0.0, 0.2, 0.2, 0.0])


def test_where_responses_count_alike_a_prompts_entropy_is_their_mean(make):
    # Responses of 2/3 and 2 nats per token: 1 by tokens, 4/3 by responses.
    by_response = ["entropy.aggregation=seq-mean-token-mean", "entropy.allocation.mean_floor=0"]
    flat = replace(rows(1.0), entropy_nats=np.array([4.4, 4.4, 4.4, 4.4, 1e9]))
    trainer = make(*HALF, *by_response, queue=[flat, of_prompts(1.0, 0.0)])
    run_step(trainer), run_step(trainer)
    assert trainer.step_control.control.state.initial_entropy == pytest.approx(1.1)
    assert trainer.weights[1].tolist() == [0.0] * 5


def test_in_bypass_mode_no_prompt_is_above_the_ceiling(make):
    trainer = make(*HALF, "algorithm.rollout_correction.bypass_mode=true", queue=[rows(None), rows(None)])
    run_step(trainer), run_step(trainer)
    assert trainer.weights[1].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_hard_prompts_above_h0_are_warned_of_once(make, caplog):
    off = "entropy.allocation.entropy_ceiling=null"
    steps = [(1.0, 1.0), (0.4, 0.0), (1.5, 0.0), (1.5, 0.0)]
    trainer = make(*HALF, off, queue=[of_prompts(*step) for step in steps])
    for _ in steps:
        run_step(trainer)
    (warning,) = [record.message for record in caplog.records if "hard prompts" in record.message]
    assert warning.startswith("step 3: the entropy of hard prompts is 1.5 nats per token, above the initial level of 1")


def test_notes_are_logged_and_problems_stop_the_trainer_which_calls_no_reward(make, monkeypatch, caplog):
    problems: list[Problem] = []
    found = CheckedConfig(
        parse_entropy_config({"method": "aer"}), problems, [Note("a.key", "may be wrong", "Look at it.")]
    )
    trainer = make(queue=[])
    # Of the config only: the driver has called the reward function.
    monkeypatch.setattr(module, "check_config", lambda config: found)
    type(trainer)(composed())
    assert "a.key: may be wrong. Look at it." in caplog.text
    problems.append(Problem("another.key", "is wrong", "Change it."))
    with pytest.raises(ConfigError, match=r"1 problem[^\0]*another\.key"):
        type(trainer)(composed())


def test_our_name_gets_verls_own_buffer_for_the_mode(monkeypatch):
    monkeypatch.setattr(module, "check_config", without_problems)
    config = composed("trainer.v1.sampler.sampler_kwargs.poll_interval=0.125")
    trainer = get_trainer_cls("aer_sync")(config=config)
    # Under the name aer_sync veRL would take the asynchronous buffer and refuse a generation batch size.
    assert type(trainer.replay_buffer).__name__ == "ReplayBuffer"
    assert trainer.trainer_mode == config.trainer.v1.trainer_mode == "sync"
    assert trainer.replay_buffer.poll_interval == 0.125


@pytest.mark.parametrize(("mode", "updates"), MODES, ids=str)
@pytest.mark.guards("T3")
def test_every_mode_keeps_verls_own_switches_under_our_name(monkeypatch, mode, updates):
    monkeypatch.setattr(module, "check_config", without_problems)
    config = composed(
        f"trainer.v1.trainer_mode=aer_{mode}",
        "trainer.v1.separate_async.parameter_sync_step=3",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "data.train_batch_size=6",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
    )
    trainer = get_trainer_cls(f"aer_{mode}")(config=config)
    assert isinstance(trainer, get_trainer_cls(mode))
    assert trainer.trainer_mode == mode
    assert type(trainer.replay_buffer).__name__ == ("ReplayBuffer" if mode == "sync" else "ReplayBufferAsync")
    # Under our own name veRL would find no such node, and make one local update a step.
    assert trainer.parameter_sync_step == updates


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("__init__", ["config"]),
        ("_setup", []),
        ("fit", ["agent_loop_manager"]),
        ("step", ["metrics", "timing_raw"]),
        ("_compute_advantage", ["batch", "metrics"]),
        ("_update_actor", ["batch", "metrics"]),
        ("_save_checkpoint", []),
        ("_load_checkpoint", []),
    ],
)
def test_what_is_overridden_still_has_verls_signature(method, parameters):
    base = get_trainer_cls("sync")
    assert list(inspect.signature(getattr(base, method)).parameters)[1:] == parameters
    ours = inspect.signature(getattr(module.EntropyTrainerMixin, method))
    assert list(ours.parameters)[1:] == parameters
