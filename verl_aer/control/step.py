"""The driver's part of a global step: computes weights, shapings, signals and metrics from the rows of a batch.

A step calls these methods in this order, those in brackets once per local update:

    begin -> [weigh -> shape_rewards -> shape_advantages -> signal -> add_update] -> finish

alpha is constant between ``begin`` and ``finish``, for any number of local updates, mini-batches and micro-batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import torch

from verl_aer.config.schema import EntropyConfig, measures_responses
from verl_aer.control.alerts import new_alerts
from verl_aer.control.loop import ControlState, Decision, EntropyControl
from verl_aer.control.metrics import decision_metrics
from verl_aer.control.state_file import RunMemory
from verl_aer.control.step_metrics import (
    PromptSummary,
    counted_entropies,
    group_metrics,
    prompt_entropies,
    summarize_prompts,
)
from verl_aer.parts.advantage_shaping import shape_advantages
from verl_aer.parts.allocation import allocate
from verl_aer.parts.reward_shaping import change_rewards
from verl_aer.rollouts.groups import CorrectnessError, Verdicts, VerdictsSoFar
from verl_aer.rollouts.question_memory import remember
from verl_aer.rollouts.types import BatchRows, Rollouts, Tokens

logger = logging.getLogger(__name__)


class EntropySource(Enum):
    """The pass on the workers that measures the controlled entropy."""

    OLD_LOG_PROBS = "old log-probs"
    """The pass before the update: all tokens, under the policy at the start of the step."""

    UPDATE = "update"
    """The update, in veRL's bypass mode: under the policy as it changes from mini-batch to mini-batch."""


@dataclass
class StepRecord:
    """Sums and samples of one global step; each local update adds to them.

    entropy_nats / tokens is the controlled entropy: the mean over all response tokens of the step. With
    aggregation=seq-mean-token-mean it is the mean over responses, and each response counts as one token.
    """

    step: int
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
        """The controlled entropy, nats per token; NaN for a step without response tokens."""
        return self.entropy_nats / self.tokens if self.tokens else float("nan")

    def shaping_metrics(self) -> dict[str, float]:
        """Return the metrics of the method's optional parts."""
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


class StepControl:
    """Applies a method to the steps of a run, and moves alpha after each.

    Args:
        config: the method, resolved for the length of the run.
        source: the pass that measures the controlled entropy.
        state: the control's state to resume from; None starts a new one.
        memory: the run's memory to resume from; None starts a new one.
    """

    def __init__(
        self,
        config: EntropyConfig,
        source: EntropySource,
        state: ControlState | None = None,
        memory: RunMemory | None = None,
    ) -> None:
        self.config = config
        self.source = source
        self.control = EntropyControl(config, state)
        self.memory = memory if memory is not None else RunMemory()
        self._verdicts_so_far = VerdictsSoFar()
        self._active_alerts: frozenset[str] = frozenset()
        self._record = StepRecord(step=0)

    def begin(self, step: int) -> None:
        """Start global step ``step``."""
        self._record = StepRecord(step)

    @contextmanager
    def timed(self) -> Generator[None]:
        """Add the time inside the block to ``timing_s/entropy_control``."""
        start = time.perf_counter()
        yield
        self._record.seconds += time.perf_counter() - start

    def weigh(self, rows: BatchRows) -> tuple[Rollouts, np.ndarray]:
        """Group the rows, and compute their weights, ``(N,)`` float32.

        Raises:
            CorrectnessError: the method uses the correctness of rollouts, and it is unknown or invalid.
            KeyError: the controller needs the entropy before the update, and veRL did not measure it.
        """
        by_response = measures_responses(self.config.aggregation)
        if self.source is EntropySource.OLD_LOG_PROBS:
            if rows.entropy_nats is None:
                raise KeyError("veRL's old-log-prob pass left no 'entropy' in the batch; the controller needs it")
            _, nats, tokens = counted_entropies(rows, rows.entropy_nats, by_response)
            self._record.add_entropy(float(nats.sum()), float(tokens.sum()))
        verdicts = self._judge(rows)
        rollouts = self._remember(rows, rows.rollouts(verdicts.correct))
        entropy = prompt_entropies(rollouts.groups, rows, by_response)
        groups = replace(rollouts.groups, entropy=entropy, initial_entropy=self.control.state.initial_entropy)
        weights = allocate(self.config.allocation, groups)
        self._record.prompts.append(summarize_prompts(rollouts.groups, weights, rows, verdicts.unreported))
        return rollouts, weights

    def shape_rewards(self, rollouts: Rollouts) -> np.ndarray | None:
        """Return the change of each row's reward, ``(N,)``; None if the method does not shape rewards."""
        shaping = self.config.reward_shaping
        if not shaping.changes:
            return None
        change, memory = change_rewards(shaping, rollouts, self.memory.reward_shaping)
        self.memory = replace(self.memory, reward_shaping=memory)
        self._record.reward_changes.append(change[rollouts.is_last])
        return change

    def shape_advantages(self, tokens: Tokens, rollouts: Rollouts, weights: np.ndarray) -> torch.Tensor:
        """Return the shaped advantages, ``(N, T)``."""
        shaped = shape_advantages(self.config.advantage_shaping, tokens, rollouts, weights, self.control.alpha)
        self._record.advantage_changes.append((shaped - tokens.advantages).abs()[tokens.mask].numpy())
        return shaped

    def signal(self) -> dict[str, float]:
        """Return the regularizer's signal for the workers, before an update of the actor."""
        signal = self.control.signal(self._record.entropy, self._record.step)
        self._record.bonus_slope = self.control.bonus_slope(self._record.entropy, signal)
        return signal

    def add_update(self, nats: float, tokens: float) -> None:
        """Record an actor update and the entropy that it measured: the sum ``nats`` over ``tokens``."""
        if self.source is EntropySource.UPDATE:
            self._record.add_entropy(nats, tokens)
        self._record.actor_updated = True

    def finish(self) -> dict[str, float]:
        """Move alpha, log new warnings, and return the metrics of the step."""
        with self.timed():
            metrics = group_metrics(self._record.prompts)
            metrics.update(self._record.shaping_metrics())
            metrics.update(decision_metrics(self._observe(), self.control.state))
            self._active_alerts, messages = new_alerts(metrics, self._active_alerts)
            for message in messages:
                logger.warning("step %d: %s", self._record.step, message)
        metrics["timing_s/entropy_control"] = self._record.seconds
        return metrics

    def _observe(self) -> Decision | None:
        """Update the controller once per global step, except in a step that only trains the critic."""
        if not self._record.actor_updated:
            return None
        decision = self.control.observe(self._record.entropy, step=self._record.step)
        if decision.skipped:
            logger.error(
                "step %d: the entropy is %s; the controller skips it and keeps alpha at %g",
                self._record.step,
                decision.entropy,
                decision.next_alpha,
            )
        return decision

    def _judge(self, rows: BatchRows) -> Verdicts:
        """Compute which rows are correct. A method that does not use correctness accepts any reward."""
        before, settings = self._verdicts_so_far, self.config.correctness
        verdicts = rows.judge(settings, before)
        self._verdicts_so_far = before.after(verdicts)
        if verdicts.problem and self.config.uses_accuracy:
            raise CorrectnessError(verdicts.problem)
        if verdicts.problem and not before.problem:
            logger.warning(
                "step %d: aer/accuracy/* and metrics by difficulty are left out from now on (the method %s does not "
                "need them): %s",
                self._record.step,
                self.config.method,
                verdicts.problem,
            )
        if verdicts.unreported.any() and not before.unreported:
            logger.warning(
                "step %d: the reward reports no number under %r for %d rows of the batch; they count as wrong "
                "(entropy.correctness.on_missing=wrong), as do later ones; aer/accuracy/unreported is their number",
                self._record.step,
                settings.reward_key,
                verdicts.unreported.sum(),
            )
        return verdicts

    def _remember(self, rows: BatchRows, rollouts: Rollouts) -> Rollouts:
        """Update the question memory, and add the history to the groups, if the method uses it."""
        if not self.config.uses_questions:
            return rollouts
        questions, groups = remember(
            self.memory.questions,
            rollouts.groups,
            rows.question_of_prompt(rollouts.groups),
            rollouts.shortest_correct(),
            self._record.step,
            self.config.question_memory,
        )
        self.memory = replace(self.memory, questions=questions)
        self._record.remembered = len(questions.questions)
        return replace(rollouts, groups=groups)
