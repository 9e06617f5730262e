"""veRL's trainers with entropy control: one mixin that extends each of veRL's classes.

In a global step the driver gives every trajectory a weight from the accuracy of its group and broadcasts α, and the
actor updates. Then the controller updates α from the entropy of the step's rollouts. α is constant within the step,
across all local updates, mini-batches and micro-batches.
"""

from __future__ import annotations

import json
import logging
from functools import partial

import ray
from omegaconf import DictConfig, open_dict
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop import AgentLoopManager
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass

from verl_aer.config.schema import ConfigError
from verl_aer.control.state_file import save_state
from verl_aer.control.step import EntropySource, StepControl
from verl_aer.integration.availability import TRAINER_MODES
from verl_aer.integration.batch import add_rewards, attach_weights, read_rows, read_tokens, write_advantages
from verl_aer.integration.checkpoint import read_resumed_state, resume_warnings, sampling_conditions, state_path
from verl_aer.integration.engine import install_entropy_engines
from verl_aer.integration.loss import (
    ALPHA_KEY,
    SIGNAL_KEY,
    UPDATE_ENTROPY_NATS,
    UPDATE_TOKENS,
    WEIGHTED_ROWS_KEY,
    entropy_loss,
)
from verl_aer.integration.measure_request import (
    MEASURE_KEY,
    encode_measure,
    measured_in_update,
    push_warnings,
    requested_in_update,
)
from verl_aer.integration.preflight import check_config, entropy_source
from verl_aer.integration.stack_report import report_run
from verl_aer.integration.stop_request import StopOnRequestMixin
from verl_aer.integration.visible_log import show_warnings
from verl_aer.integration.watchdog import WatchdogMixin
from verl_aer.parts.measure import Measure

logger = logging.getLogger(__name__)


class EntropyTrainerMixin:
    """Entropy control for any of veRL's v1 trainers. In a class statement, it precedes the trainer.

    It overrides only methods that all trainer modes share, and each override calls ``super()``.
    """

    def __init__(self, config: DictConfig) -> None:
        show_warnings()
        checked = check_config(config)
        for note in checked.notes:
            logger.warning("%s", note)
        if checked.problems:
            raise ConfigError(checked.problems)
        self.entropy_config = checked.entropy
        self.entropy_source = entropy_source(config)
        with open_dict(config):
            # veRL's trainers also branch on the mode: under our name `sync` would get the asynchronous buffer.
            config.trainer.v1.trainer_mode = TRAINER_MODES[config.trainer.v1.trainer_mode]
        super().__init__(config=config)

    def _setup(self) -> None:
        super()._setup()
        self._install_engines()
        self._install_loss()
        for warning in push_warnings(self.config, self.entropy_config):
            logger.warning("%s", warning)

    def _install_engines(self) -> None:
        """Install our engine on the workers of this run. Other runs on the cluster keep veRL's engine."""
        groups = [self.actor_rollout_wg, *([self.ref_policy_wg] if self.use_reference_policy else [])]
        workers = {worker for group in groups for worker in group.workers}
        ray.get([worker.__ray_call__.remote(install_entropy_engines) for worker in workers])

    def _install_loss(self) -> None:
        actor_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        entropy = self.step_control.config
        loss = partial(
            entropy_loss,
            actor_config,
            entropy.aggregation,
            from_log_probs=entropy.pushed_measure.from_log_probs,
            measured_from_log_probs=measured_in_update(entropy, self.entropy_source).from_log_probs,
            token_selection=entropy.token_selection,
            regularizer=entropy.regularizer,
        )
        self.actor_rollout_wg.set_loss_fn(loss)

    def fit(self, agent_loop_manager: AgentLoopManager) -> None:
        report_run(self, agent_loop_manager, self.step_control.config)
        super().fit(agent_loop_manager)

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        self.step_control.begin(self.global_steps)
        batch = super().step(metrics, timing_raw)
        # Added after veRL's aggregation per update, which would average or sum these metrics by their names.
        metrics.update(self.step_control.finish())
        return batch

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self._request_measure(batch, self.entropy_config.measure)
        return super()._compute_old_log_prob(batch, metrics=metrics)

    def _request_measure(self, batch: KVBatchMeta, measure: Measure) -> None:
        """Request ``measure`` from the next pass of the workers, and clear the request of the previous pass."""
        request = encode_measure(measure)
        if request is None:
            batch.extra_info.pop(MEASURE_KEY, None)
        else:
            batch.extra_info[MEASURE_KEY] = request

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        step = self.step_control
        with step.timed():
            rows = read_rows(batch, self.entropy_config, reward_is_colocated=self.get_reward_handles() is None)
            rollouts, weights = step.weigh(rows)
            change = step.shape_rewards(rollouts)
            if change is not None:
                batch = add_rewards(batch, change)
        batch = super()._compute_advantage(batch, metrics=metrics)
        with step.timed():
            shaping = self.entropy_config.advantage_shaping
            if shaping.shapes:
                tokens = read_tokens(batch, self.entropy_config.measure.from_log_probs, shaping.uses_entropy)
                batch = write_advantages(batch, step.shape_advantages(tokens, rollouts, weights))
            return attach_weights(batch, weights)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self._request_measure(batch, requested_in_update(self.entropy_config, self.entropy_source))
        batch.extra_info[ALPHA_KEY] = self.step_control.control.alpha
        batch.extra_info[SIGNAL_KEY] = json.dumps(self.step_control.signal())
        # If the update measures the controlled entropy, it measures all rows.
        batch.extra_info[WEIGHTED_ROWS_KEY] = self.entropy_source is not EntropySource.UPDATE
        batch = super()._update_actor(batch, metrics=metrics)
        nats, tokens = metrics.pop(UPDATE_ENTROPY_NATS), metrics.pop(UPDATE_TOKENS)
        if tokens:
            metrics["actor/aer/entropy"] = nats / tokens
        self.step_control.add_update(nats, tokens)
        return batch

    def _save_checkpoint(self) -> None:
        # Save our state first: veRL marks the checkpoint complete at the end of its save.
        save_state(
            state_path(self.config, self.global_steps),
            self.step_control.control.state,
            # The unresolved config: a run may be resumed for more steps.
            self.entropy_config,
            sampling_conditions(self.config),
            self.step_control.memory,
        )
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        """Create the step control. veRL calls this in ``_setup`` of every run, when it knows the length of the run."""
        super()._load_checkpoint()
        resumed = read_resumed_state(self.config, self.entropy_config) if self.global_steps else None
        state, memory = (resumed.state, resumed.memory) if resumed else (None, None)
        entropy = self.entropy_config.resolve(self.total_training_steps)
        self.step_control = StepControl(entropy, self.entropy_source, state, memory)
        if resumed is None:
            return
        print(
            f"[verl_aer] resumed after step {state.step}: alpha {state.alpha!r}, "
            f"initial entropy {state.initial_entropy!r}",
            flush=True,
        )
        for warning in [*resumed.changes, *resume_warnings(self.config)]:
            logger.warning("%s", warning)


@register_trainer("aer_sync")
class EntropyTrainerSync(EntropyTrainerMixin, StopOnRequestMixin, WatchdogMixin, PPOTrainerSync):
    """veRL's synchronous trainer with entropy control."""


@register_trainer("aer_colocate_async")
class EntropyTrainerColocateAsync(EntropyTrainerMixin, StopOnRequestMixin, WatchdogMixin, PPOTrainerColocateAsync):
    """veRL's asynchronous trainer that shares its devices with the rollout, with entropy control."""


@register_trainer("aer_separate_async")
class EntropyTrainerSeparateAsync(EntropyTrainerMixin, StopOnRequestMixin, WatchdogMixin, PPOTrainerSeparateAsync):
    """veRL's asynchronous trainer with separate rollout devices and entropy control.

    A global step holds `parameter_sync_step` local updates. They share one α, and one controller update follows them.
    """

    def _setup(self) -> None:
        if not self._enable_hybrid_replicas:
            # With hybrid_engine=false veRL 0.9.1 fails at a log line that passes `flush` to a logger.
            logging.getLogger(PPOTrainerSeparateAsync.__module__).setLevel(logging.WARNING)
        super()._setup()
