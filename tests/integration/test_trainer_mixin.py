"""The control in veRL's trainers: the order of the hooks, extra_info of a batch, saving, resuming, trainer modes."""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module
from verl.trainer.ppo.v1 import get_trainer_cls

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from tests.unit.test_step import TOKENS, rows
from verl_aer import parse_entropy_config
from verl_aer.config.schema import ConfigError, Problem
from verl_aer.control.state_file import save_state
from verl_aer.integration import trainer as module
from verl_aer.integration.loss import ALPHA_KEY, SIGNAL_KEY, UPDATE_ENTROPY_NATS, UPDATE_TOKENS, WEIGHTED_ROWS_KEY
from verl_aer.integration.measure_request import MEASURE_KEY
from verl_aer.integration.preflight import CheckedConfig, Note, read_entropy_config
from verl_aer.rollouts.types import BatchRows


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


class Base:
    """Stands for veRL's trainer: a step of ``local_updates`` updates."""

    local_updates = 1
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
    """A trainer whose batches hold ``queue``'s rows."""
    monkeypatch.setattr(module, "check_config", without_problems)

    def build(*overrides: str, queue: list[BatchRows]):
        trainer = Trainer(composed(*overrides))
        trainer._load_checkpoint()
        monkeypatch.setattr(module, "read_rows", lambda batch, config, reward_is_colocated: queue.pop(0))
        monkeypatch.setattr(module, "attach_weights", lambda batch, w: SimpleNamespace(**vars(batch), weights=w))
        return trainer

    return build


def run_step(trainer) -> dict[str, float]:
    trainer.global_steps += 1
    metrics: dict[str, float] = {}
    trainer.step(metrics, {})
    return metrics


MODES = [("sync", 1), ("colocate_async", 1), ("separate_async", 3)]
"""veRL's trainer modes, each with the local updates of a step that it is tried with."""
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


@pytest.mark.guards("bug 2", "T23")
def test_several_local_updates_are_one_step(make):
    trainer = make(*HALF, queue=[rows(1.0), rows(1.0), rows(0.25), rows(0.25)])
    trainer.local_updates = 2
    assert [run_step(trainer)["aer/alpha_next"] for _ in range(2)] == [0.0, 0.025]
    assert trainer.sent == [0.0] * 4


def test_the_regularizers_numbers_go_out_as_text(make):
    trainer = make("entropy=siren", queue=[rows(1.0), rows(0.75)])
    run_step(trainer), run_step(trainer)
    assert trainer.signals == ['{"pull": 0.0}', '{"pull": 0.5}']


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


def test_only_a_colocated_reward_model_reports_in_columns(make, monkeypatch):
    asked = []
    trainer = make(*HALF, queue=[rows(1.0), rows(1.0)])
    read = module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda *args, **more: asked.append(more) or read(*args, **more))
    run_step(trainer)
    monkeypatch.setattr(Base, "get_reward_handles", lambda self: None)
    run_step(trainer)
    assert asked == [{"reward_is_colocated": False}, {"reward_is_colocated": True}]


def test_rewards_are_shaped_before_and_advantages_after_verls_estimator(make, monkeypatch):
    order = []
    trainer = make("entropy=ceeh_ea", queue=[replace(rows(1.0), question=["x", "x", "y", "y", "x"])])
    monkeypatch.setattr(Base, "_compute_advantage", lambda self, batch, metrics: order.append("veRL") or batch)
    monkeypatch.setattr(module, "add_rewards", lambda batch, change: order.append("rewards") or batch)
    monkeypatch.setattr(module, "read_tokens", lambda *args: TOKENS)
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


@pytest.mark.guards("T23")
def test_bypass_mode_controls_the_workers_own_entropy(make):
    trainer = make(*HALF, BYPASS, queue=[rows(None)])
    metrics = run_step(trainer)
    assert metrics["aer/entropy"] == 0.75  # 6 nats over 8 tokens
    # That of all rows: it is the controlled one.
    assert not trainer.of_weighted_rows


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
