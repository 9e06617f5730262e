"""veRL's trainers with entropy control: one mixin before each of veRL's own classes.

A global step: the driver gives every trajectory a weight from its group's accuracy, broadcasts α, the actor updates,
and only then the controller moves α by the entropy of the step's rollouts. α is frozen within the step, however many
local updates, mini-batches or micro-batches it holds.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import ray
from omegaconf import DictConfig, open_dict
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop import AgentLoopManager
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass

from verl_aer.config.schema import ConfigError, EntropyConfig, measures_responses
from verl_aer.control.alerts import new_alerts
from verl_aer.control.loop import Decision, EntropyControl
from verl_aer.control.metrics import decision_metrics
from verl_aer.control.state_file import RunMemory, save_state
from verl_aer.integration.batch import (
    BatchRows,
    add_rewards,
    attach_weights,
    read_rows,
    read_tokens,
    write_advantages,
)
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
from verl_aer.integration.modes import TRAINER_MODES
from verl_aer.integration.preflight import bypasses_old_log_probs, notes, preflight, read_entropy_config, stopping
from verl_aer.integration.stack_report import report_run
from verl_aer.integration.step_metrics import PromptSummary, group_metrics, prompt_entropies, summarize_prompts
from verl_aer.integration.stop_request import StopOnRequestMixin
from verl_aer.integration.visible_log import show_warnings
from verl_aer.integration.watchdog import WatchdogMixin
from verl_aer.parts.advantage_shaping import shape_advantages
from verl_aer.parts.allocation import allocate
from verl_aer.parts.measure import Measure
from verl_aer.parts.reward_shaping import change_rewards
from verl_aer.rollouts.groups import CorrectnessError, Verdicts, VerdictsSoFar
from verl_aer.rollouts.question_memory import remember
from verl_aer.rollouts.types import Rollouts

logger = logging.getLogger(__name__)


@dataclass
class StepRecord:
    """What one global step has seen so far; a step of several local updates adds each of them up.

    entropy_nats / tokens is the controlled entropy: the token mean over all response tokens of the step, under the
    policy of the old log-probs, or under the updating policy where veRL skips that pass (bypass mode). With
    aggregation=seq-mean-token-mean the former is the mean over responses, which count as one token each.
    """

    entropy_nats: float = 0.0
    tokens: float = 0.0
    actor_updated: bool = False
    seconds: float = 0.0
    prompts: list[PromptSummary] = field(default_factory=list)
    reward_changes: list[np.ndarray] = field(default_factory=list)
    advantage_changes: list[np.ndarray] = field(default_factory=list)
    remembered: int | None = None
    bonus_slope: float | None = None

    def add_entropy(self, nats: float, tokens: float) -> None:
        self.entropy_nats += nats
        self.tokens += tokens

    @property
    def entropy(self) -> float:
        """Nats per response token; NaN for a step without response tokens."""
        return self.entropy_nats / self.tokens if self.tokens else float("nan")

    def shaping_metrics(self) -> dict[str, float]:
        """Of the parts that a method has; nothing of those that it has not."""
        metrics = {}
        if self.reward_changes:
            metrics["aer/reward_change"] = float(np.concatenate(self.reward_changes).mean())
        if self.advantage_changes:
            metrics["aer/advantage_change"] = float(np.concatenate(self.advantage_changes).mean())
        if self.remembered is not None:
            metrics["aer/question_memory/size"] = self.remembered
        if self.bonus_slope is not None:
            metrics["aer/bonus_slope"] = self.bonus_slope
        return metrics

    @contextmanager
    def timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


class EntropyTrainerMixin:
    """Entropy control for any of veRL's v1 trainers; placed before it in a class statement.

    Only methods that every trainer mode shares are overridden, each around ``super()``.
    """

    def __init__(self, config: DictConfig) -> None:
        show_warnings()
        # veRL's trainers read the mode as a switch too: under our name `sync` would get the asynchronous buffer.
        mode = config.trainer.v1.trainer_mode
        found = preflight(config)
        for note in notes(found):
            logger.warning("%s", note)
        if problems := stopping(found):
            raise ConfigError(problems)
        with open_dict(config):
            config.trainer.v1.trainer_mode = TRAINER_MODES[mode]
        self.entropy_config = read_entropy_config(config)
        # Before super().__init__ and _setup: veRL loads the checkpoint, and with it our state, in the middle of _setup.
        self.entropy_control = EntropyControl(self.entropy_config)
        self.entropy_memory = RunMemory()
        self._verdicts_so_far = VerdictsSoFar()
        self._step_record = StepRecord()
        self._active_alerts: frozenset[str] = frozenset()
        super().__init__(config=config)

    def _setup(self) -> None:
        super()._setup()
        self._install_engines()
        self._install_loss()
        for warning in push_warnings(self.config, self.entropy_config):
            logger.warning("%s", warning)

    def _install_engines(self) -> None:
        """On the workers of this run only: other runs on the same cluster, and veRL's own trainers, keep veRL's."""
        groups = [self.actor_rollout_wg, *([self.ref_policy_wg] if self.use_reference_policy else [])]
        workers = {worker for group in groups for worker in group.workers}
        ray.get([worker.__ray_call__.remote(install_entropy_engines) for worker in workers])

    @property
    def _settings_of_run(self) -> EntropyConfig:
        """What is trained with. Saved and compared is the config as it was written: a run may be resumed for more."""
        return self.entropy_config.resolve(self.total_training_steps)

    def _install_loss(self) -> None:
        actor_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        entropy = self._settings_of_run
        loss = partial(
            entropy_loss,
            actor_config,
            entropy.aggregation,
            from_log_probs=entropy.pushed_measure.from_log_probs,
            measured_from_log_probs=measured_in_update(entropy, bypasses_old_log_probs(self.config)).from_log_probs,
            token_selection=entropy.token_selection,
            regularizer=entropy.regularizer,
        )
        self.actor_rollout_wg.set_loss_fn(loss)

    def fit(self, agent_loop_manager: AgentLoopManager) -> None:
        report_run(self, agent_loop_manager, self._settings_of_run)
        super().fit(agent_loop_manager)

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        self._step_record = StepRecord()
        batch = super().step(metrics, timing_raw)
        with self._step_record.timed():
            # Added here, after veRL's per-update aggregation, which would average or sum them by their names.
            metrics.update(group_metrics(self._step_record.prompts))
            metrics.update(self._step_record.shaping_metrics())
            metrics.update(decision_metrics(self._observe(), self.entropy_control.state))
            self._active_alerts, messages = new_alerts(metrics, self._active_alerts)
            for message in messages:
                logger.warning("step %d: %s", self.global_steps, message)
        metrics["timing_s/entropy_control"] = self._step_record.seconds
        return batch

    def _observe(self) -> Decision | None:
        """One controller update per global step, after the actor's; none where the critic warms up alone."""
        if not self._step_record.actor_updated:
            return None
        decision = self.entropy_control.observe(self._step_record.entropy, step=self.global_steps)
        if decision.skipped:
            logger.error(
                "step %d: the entropy is %s; the controller skips it and α stays %g",
                self.global_steps,
                decision.entropy,
                decision.next_alpha,
            )
        return decision

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self._request_measure(batch, self.entropy_config.measure)
        return super()._compute_old_log_prob(batch, metrics=metrics)

    def _request_measure(self, batch: KVBatchMeta, measure: Measure) -> None:
        """Ask the next pass of the workers for ``measure``, whatever the pass before was asked for."""
        request = encode_measure(measure)
        if request is None:
            batch.extra_info.pop(MEASURE_KEY, None)
        else:
            batch.extra_info[MEASURE_KEY] = request

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        with self._step_record.timed():
            rows = read_rows(batch, self.entropy_config, reward_is_colocated=self.get_reward_handles() is None)
            verdicts = self._judge(rows)
            rollouts = self._rollouts(rows, verdicts)
            weights = self._weigh(rows, rollouts, verdicts)
            batch = self._shape_rewards(batch, rollouts)
        batch = super()._compute_advantage(batch, metrics=metrics)
        with self._step_record.timed():
            batch = self._shape_advantages(batch, rollouts, weights)
            return attach_weights(batch, weights)

    def _judge(self, rows: BatchRows) -> Verdicts:
        """Which rows are correct: a method that does not use it runs with any reward."""
        before, settings = self._verdicts_so_far, self.entropy_config.correctness
        verdicts = rows.judge(settings, before)
        self._verdicts_so_far = before.after(verdicts)
        if verdicts.problem and self.entropy_config.uses_accuracy:
            raise CorrectnessError(verdicts.problem)
        if verdicts.problem and not before.problem:
            logger.warning(
                "step %d: aer/accuracy/* and metrics by difficulty are left out from now on (%s needs none): %s",
                self.global_steps,
                self.entropy_config.method,
                verdicts.problem,
            )
        if verdicts.unreported.any() and not before.unreported:
            logger.warning(
                "step %d: the reward reports no number under %r for %d rows of the batch; they count as wrong "
                "(entropy.correctness.on_missing=wrong), now and later, and aer/accuracy/unreported counts them",
                self.global_steps,
                settings.key,
                verdicts.unreported.sum(),
            )
        return verdicts

    def _rollouts(self, rows: BatchRows, verdicts: Verdicts) -> Rollouts:
        rollouts = rows.rollouts(verdicts.correct)
        if not self.entropy_config.uses_questions:
            return rollouts
        questions, groups = remember(
            self.entropy_memory.questions,
            rollouts.groups,
            rows.question_of_prompt(rollouts.groups),
            rollouts.shortest_correct(),
            self.global_steps,
            self.entropy_config.question_memory,
        )
        self.entropy_memory = replace(self.entropy_memory, questions=questions)
        self._step_record.remembered = len(questions.questions)
        return replace(rollouts, groups=groups)

    def _shape_rewards(self, batch: KVBatchMeta, rollouts: Rollouts) -> KVBatchMeta:
        shaping = self.entropy_config.reward_shaping
        if not shaping.changes:
            return batch
        change, memory = change_rewards(shaping, rollouts, self.entropy_memory.reward_shaping)
        self.entropy_memory = replace(self.entropy_memory, reward_shaping=memory)
        self._step_record.reward_changes.append(change[rollouts.is_last])
        return add_rewards(batch, change)

    def _shape_advantages(self, batch: KVBatchMeta, rollouts: Rollouts, weights: np.ndarray) -> KVBatchMeta:
        shaping = self.entropy_config.advantage_shaping
        if not shaping.shapes:
            return batch
        tokens = read_tokens(batch, self.entropy_config.measure.from_log_probs, shaping.uses_entropy)
        shaped = shape_advantages(shaping, tokens, rollouts, weights, self.entropy_control.alpha)
        self._step_record.advantage_changes.append((shaped - tokens.advantages).abs()[tokens.mask].numpy())
        return write_advantages(batch, shaped)

    def _weigh(self, rows: BatchRows, rollouts: Rollouts, verdicts: Verdicts) -> np.ndarray:
        entropy = prompt_entropies(rollouts.groups, rows, measures_responses(self.entropy_config.aggregation))
        groups = replace(rollouts.groups, entropy=entropy, initial_entropy=self.entropy_control.state.initial_entropy)
        weights = allocate(self.entropy_config.allocation, groups)
        if not bypasses_old_log_probs(self.config):
            if rows.entropy_nats is None:
                raise KeyError("veRL's old-log-prob pass left no 'entropy' in the batch; the controller needs it")
            self._step_record.add_entropy(*_added_up(rows, self.entropy_config.aggregation))
        self._step_record.prompts.append(summarize_prompts(rollouts.groups, weights, rows, verdicts.unreported))
        return weights

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        bypass = bypasses_old_log_probs(self.config)
        self._request_measure(batch, requested_in_update(self.entropy_config, bypass))
        batch.extra_info[ALPHA_KEY] = self.entropy_control.alpha
        signal = self.entropy_control.signal(self._step_record.entropy, self.global_steps)
        batch.extra_info[SIGNAL_KEY] = json.dumps(signal)
        # In bypass mode the controlled entropy is that of the update, and of all rows.
        batch.extra_info[WEIGHTED_ROWS_KEY] = not bypass
        self._step_record.bonus_slope = self.entropy_control.bonus_slope(self._step_record.entropy, signal)
        batch = super()._update_actor(batch, metrics=metrics)
        nats, tokens = metrics.pop(UPDATE_ENTROPY_NATS), metrics.pop(UPDATE_TOKENS)
        if tokens:
            metrics["actor/aer/entropy"] = nats / tokens
        if bypass:
            self._step_record.add_entropy(nats, tokens)
        self._step_record.actor_updated = True
        return batch

    def _save_checkpoint(self) -> None:
        # First: veRL marks the checkpoint complete when it has saved.
        save_state(
            state_path(self.config, self.global_steps),
            self.entropy_control.state,
            self.entropy_config,
            sampling_conditions(self.config),
            self.entropy_memory,
        )
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        self.entropy_control = EntropyControl(self._settings_of_run)
        if self.global_steps == 0:
            return
        resumed = read_resumed_state(self.config, self.entropy_config)
        if resumed is not None:
            state, self.entropy_memory = resumed.state, resumed.memory
            self.entropy_control = EntropyControl(self._settings_of_run, state)
            print(
                f"[verl_aer] resumed after step {state.step}: alpha {state.alpha!r}, "
                f"initial entropy {state.initial_entropy!r}",
                flush=True,
            )
            for warning in [*resumed.changes, *resume_warnings(self.config)]:
                logger.warning("%s", warning)


def _added_up(rows: BatchRows, aggregation: str) -> tuple[float, float]:
    """Nats and tokens of all rows; where each response counts alike, their means and their number."""
    counted = ~rows.is_padding & (rows.tokens > 0)
    nats, tokens = rows.entropy_nats[counted], rows.tokens[counted]
    if measures_responses(aggregation):
        return float((nats / tokens).sum()), float(len(nats))
    return float(nats.sum()), float(tokens.sum())


@register_trainer("aer_sync")
class EntropyTrainerSync(EntropyTrainerMixin, StopOnRequestMixin, WatchdogMixin, PPOTrainerSync):
    """veRL's synchronous trainer with entropy control."""


@register_trainer("aer_colocate_async")
class EntropyTrainerColocateAsync(EntropyTrainerMixin, StopOnRequestMixin, WatchdogMixin, PPOTrainerColocateAsync):
    """veRL's asynchronous trainer that shares its devices with the rollout, with entropy control."""


@register_trainer("aer_separate_async")
class EntropyTrainerSeparateAsync(EntropyTrainerMixin, StopOnRequestMixin, WatchdogMixin, PPOTrainerSeparateAsync):
    """veRL's asynchronous trainer with separate rollout devices and entropy control.

    A global step holds `parameter_sync_step` local updates; they share one α, and one controller update follows them.
    """

    def _setup(self) -> None:
        if not self._enable_hybrid_replicas:
            # With hybrid_engine=false veRL 0.9.1 dies of a log line, which passes `flush` to a logger.
            logging.getLogger(PPOTrainerSeparateAsync.__module__).setLevel(logging.WARNING)
        super()._setup()
