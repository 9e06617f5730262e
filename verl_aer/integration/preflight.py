"""Check the composed config before any Ray actor or GPU is used.

Each check is a function from the config to its problems. ``check_config`` runs them all, so that one attempt shows
everything that must be fixed. A problem stops the run. A note does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf
from verl.plugin.platform import get_platform
from verl.trainer.distillation import is_distillation_enabled

from verl_aer.config.schema import ConfigError, EntropyConfig, Problem, parse_entropy_config
from verl_aer.control.state_file import StateError
from verl_aer.control.step import EntropySource
from verl_aer.integration.availability import TRAINER_MODES, PluginError, require_plugin
from verl_aer.integration.checkpoint import STATE_FILE, data_files, read_resumed_state
from verl_aer.integration.measure_request import BACKENDS, encode_measure
from verl_aer.integration.reward_trial import Outcome, try_reward
from verl_aer.methods.base import get_method

ACTOR = "actor_rollout_ref.actor"


class Note(Problem):
    """A possible mistake that does not stop the run."""


class CheckedConfig(NamedTuple):
    """Result of ``check_config``.

    entropy: the parsed node ``entropy``, None if it cannot be parsed. problems: stop the run. notes: do not.
    """

    entropy: EntropyConfig | None
    problems: list[Problem]
    notes: list[Problem]


def check_config(config: DictConfig, elsewhere: bool = False, on_driver: bool = False) -> CheckedConfig:
    """Parse the node ``entropy`` and find every problem of ``config`` that concerns the entropy control. Never raises.

    Args:
        config: the composed config of a run.
        elsewhere: the run is for another machine: skip the checks of devices and files.
        on_driver: the run has not begun: the user's reward function may be called once.
    """
    checks = CONFIG_CHECKS if elsewhere else [*CONFIG_CHECKS, *MACHINE_CHECKS]
    entropy, found = None, []
    try:
        entropy = read_entropy_config(config)
    except ConfigError as error:
        found += error.problems
    except Exception as error:
        # The trainer would raise the same error.
        fix = "Correct this part of the config."
        found.append(Problem("entropy", f"cannot be read: {_in_one_line(error)}", fix))
    found += _problems(checks, config)
    if entropy is not None:
        found += _problems([*ENTROPY_CHECKS, *(DRIVER_CHECKS if on_driver else [])], config, entropy)
    problems = [problem for problem in found if not isinstance(problem, Note)]
    return CheckedConfig(entropy, problems, [problem for problem in found if isinstance(problem, Note)])


def read_entropy_config(config: DictConfig) -> EntropyConfig:
    """Parse the ``entropy`` node. Raises ConfigError with all of its problems."""
    node = config.get("entropy")
    if node is None:
        raise ConfigError(
            [
                Problem(
                    "entropy",
                    "the config has no node `entropy`",
                    "Add `+entropy=aer`.",
                )
            ]
        )
    return parse_entropy_config(OmegaConf.to_container(node, resolve=True))


def entropy_source(config: DictConfig) -> EntropySource:
    """Choose the pass that measures the entropy.

    In bypass mode veRL uses the rollout's log-probs as the old ones, so there is no entropy before the update.
    """
    correction = config.algorithm.get("rollout_correction") or {}
    return EntropySource.UPDATE if correction.get("bypass_mode", False) else EntropySource.OLD_LOG_PROBS


def _problems(checks: list[Callable[..., Iterator[Problem]]], *args: Any) -> list[Problem]:
    """Run the checks and collect their problems. An exception of a check is a note: the run may still work."""
    problems = []
    for check in checks:
        try:
            for problem in check(*args):
                problems.append(problem)
        except ConfigError as error:
            problems += error.problems
        except Exception as error:
            name = check.__name__.strip("_").replace("_", " ")
            problems.append(
                Note(
                    f"preflight ({name})",
                    f"the check itself failed: {_in_one_line(error)}",
                    "The run may still work.",
                )
            )
    return problems


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# --------------------------------------------------------------------------- veRL's settings for the entropy control


def _plugin_is_loaded(config: DictConfig) -> Iterator[Problem]:
    """Report failures of the plug-in, which did not break veRL's import."""
    try:
        require_plugin()
    except PluginError as error:
        yield Problem("verl_aer", str(error), "Run `verl-aer doctor`.")


def _trainer_mode(config: DictConfig) -> Iterator[Problem]:
    mode = config.trainer.v1.trainer_mode
    if not config.trainer.use_v1:
        yield Problem("trainer.use_v1", "the entropy control needs veRL's v1 trainer", "Set trainer.use_v1=true.")
    if mode not in TRAINER_MODES:
        ours = f"aer_{mode}" if f"aer_{mode}" in TRAINER_MODES else "aer_sync"
        yield Problem(
            "trainer.v1.trainer_mode",
            f"veRL's own trainer {mode!r} would ignore the entropy control",
            f"Set trainer.v1.trainer_mode={ours}.",
        )


def _no_second_entropy_term(config: DictConfig) -> Iterator[Problem]:
    coefficient = config.actor_rollout_ref.actor.entropy_coeff
    if coefficient != 0:
        yield Problem(
            f"{ACTOR}.entropy_coeff",
            f"veRL's own entropy term (coefficient {coefficient}) would be added to this one",
            f"Set {ACTOR}.entropy_coeff=0; for a fixed coefficient use "
            f"+entropy=fixed entropy.controller.coefficient={coefficient}.",
        )


def _entropy_is_computed(config: DictConfig) -> Iterator[Problem]:
    if not config.actor_rollout_ref.actor.calculate_entropy:
        yield Problem(
            f"{ACTOR}.calculate_entropy",
            "the actor would return no token entropy",
            f"Set {ACTOR}.calculate_entropy=true.",
        )


def _no_distillation(config: DictConfig) -> Iterator[Problem]:
    if is_distillation_enabled(config.get("distillation")):
        yield Problem(
            "distillation.enabled",
            "distillation replaces this loss with its own",
            "Set distillation.enabled=false.",
        )


UNSUPPORTED_ESTIMATORS = {
    "remax": "samples no greedy baseline",
    "gdpo": "passes no reward components",
    "optimal_token_baseline": "passes no sum_pi_squared",
    "tir_optimal_token_baseline": "passes no sum_pi_squared",
}
"""Estimators that veRL 0.9.1 registers and whose first step fails in its v1 trainers, with or without this package."""


def _estimator_runs(config: DictConfig) -> Iterator[Problem]:
    estimator = config.algorithm.adv_estimator
    if estimator in UNSUPPORTED_ESTIMATORS:
        yield Problem(
            "algorithm.adv_estimator",
            f"veRL's v1 trainer {UNSUPPORTED_ESTIMATORS[estimator]} for {estimator!r}: the first step would fail",
            "Use another estimator, such as algorithm.adv_estimator=grpo or rloo.",
        )


def _separate_async_can_start(config: DictConfig) -> Iterator[Problem]:
    """Check the conditions that veRL's trainer asserts after the run has started."""
    if TRAINER_MODES.get(config.trainer.v1.trainer_mode) != "separate_async":
        return
    rollout, mini_batch = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor.ppo_mini_batch_size
    updates, batch = config.trainer.v1.separate_async.parameter_sync_step, config.data.train_batch_size
    if batch != updates * mini_batch:
        yield Problem(
            "data.train_batch_size",
            f"is {batch}, but {updates} local updates (trainer.v1.separate_async.parameter_sync_step) of {mini_batch} "
            f"prompts ({ACTOR}.ppo_mini_batch_size) need {updates * mini_batch}",
            f"Set data.train_batch_size={updates * mini_batch}.",
        )
    for key in ("nnodes", "n_gpus_per_node"):
        if rollout[key] <= 0:
            yield Problem(
                f"actor_rollout_ref.rollout.{key}",
                f"separate_async needs dedicated rollout devices, but {key}={rollout[key]}",
                f"Set actor_rollout_ref.rollout.{key} to 1 or more.",
            )
    if rollout.checkpoint_engine.backend == "naive":
        yield Problem(
            "actor_rollout_ref.rollout.checkpoint_engine.backend",
            "backend 'naive' cannot send weights across devices, which separate_async requires",
            "Set it to nccl (or hccl, nixl, mooncake); on a CPU +hardware=cpu sets it to gloo.",
        )


def _megatron_entropy_has_a_gradient(config: DictConfig) -> Iterator[Problem]:
    """Reject veRL's chunked entropy on Megatron, whose gradient fails.

    The backward of veRL's `_VocabParallelEntropy` edits its logits in place, and restores them. Chunks are views of one
    tensor and share its version counter, so after the backward of the first chunk autograd rejects that of the second.
    """
    actor = config.actor_rollout_ref.actor
    if actor.strategy == "megatron" and actor.megatron.entropy_from_logits_with_chunking:
        yield Problem(
            f"{ACTOR}.megatron.entropy_from_logits_with_chunking",
            "the entropy term needs a gradient, and veRL's chunked entropy on Megatron has no working one: the "
            "backward of a chunk edits the logits that the next chunk has saved, so the first update would fail",
            f"Set {ACTOR}.entropy_from_logits_with_chunking=false (and the same below {ACTOR}.megatron).",
        )


def _norm_has_a_scale(config: DictConfig) -> Iterator[Problem]:
    actor = config.actor_rollout_ref.actor
    if actor.loss_agg_mode == "seq-mean-token-sum-norm" and actor.loss_scale_factor is None:
        yield Problem(
            f"{ACTOR}.loss_scale_factor",
            "seq-mean-token-sum-norm without a scale divides by the padded width of each micro-batch, so the loss "
            "depends on how batches are split",
            f"Set {ACTOR}.loss_scale_factor to data.max_response_length ({config.data.max_response_length}).",
        )


def _device_is_there(config: DictConfig) -> Iterator[Problem]:
    here, asked = get_platform().device_name, config.trainer.device
    if here == "cpu" and asked != "cpu":
        yield Problem(
            "trainer.device",
            f"the run requires {asked!r}, but no accelerator was found",
            "Add +hardware=cpu to train on the CPU, or run `verl-aer doctor` to find what is missing.",
        )


def _data_files_are_there(config: DictConfig) -> Iterator[Problem]:
    for key in ("train_files", "val_files"):
        for file in data_files(config, key):
            # veRL fetches files on remote file systems (hdfs://, s3://).
            if "://" not in file and not Path(file).exists():
                yield Problem(f"data.{key}", f"{file} does not exist", f"Prepare it, or correct data.{key}.")


CONFIG_CHECKS = [
    _plugin_is_loaded,
    _trainer_mode,
    _no_second_entropy_term,
    _entropy_is_computed,
    _no_distillation,
    _estimator_runs,
    _separate_async_can_start,
    _megatron_entropy_has_a_gradient,
    _norm_has_a_scale,
]

MACHINE_CHECKS = [
    _device_is_there,
    _data_files_are_there,
]

# ------------------------------------------------------------------------- requirements of the entropy settings


def _target_is_used(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    target, controller = entropy.target.kind, entropy.controller
    if target != "none" and not (controller.uses_target or entropy.regularizer.uses_target):
        yield Note(
            "entropy.target.kind",
            f"the controller {controller.kind!r} does not use the target {target!r}: it is only logged",
            "Set entropy/controller=pi to hold the entropy at the target, or entropy/target=none.",
        )


def _groups_have_rollouts(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    n = config.actor_rollout_ref.rollout.n
    if entropy.uses_accuracy and n < 2:
        yield Problem(
            "actor_rollout_ref.rollout.n",
            f"difficulty is measured over a group of rollouts, but rollout.n={n}",
            "Set actor_rollout_ref.rollout.n to 2 or more (8 is usual), or use a method with "
            "allocation `uniform`, such as +entropy=aer_no_allocation.",
        )


def _policy_loss_is_selected(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    """Check that a method that is one of veRL's policy losses selects that loss. Numbers may be changed, names not."""
    for key, value in get_method(entropy.method).verl.items():
        found = OmegaConf.select(config, key)
        if isinstance(value, str) and found != value:
            yield Problem(key, f"method {entropy.method!r} requires {value!r}, got {found!r}", f"Set {key}={value}.")


def _measure_is_computed(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    actor = config.actor_rollout_ref.actor
    asked = {"entropy.measure.kind": entropy.measure, "entropy.pushed.kind": entropy.pushed_measure}
    if entropy.pushed_measure == entropy.measure:
        del asked["entropy.pushed.kind"]
    for key, measure in asked.items():
        if encode_measure(measure) is None:
            continue
        full = f"{key.removesuffix('.kind').replace('.', '/')}=full"
        if actor.strategy not in BACKENDS:
            yield Problem(
                key,
                f"the training engine {actor.strategy!r} computes only the entropy of the whole vocabulary, not "
                f"{measure.kind!r}",
                f"Set {ACTOR}.strategy to {' or '.join(BACKENDS)}, or {full}.",
            )
        if config.actor_rollout_ref.model.use_fused_kernels:
            yield Problem(
                key,
                f"{measure.kind!r} needs whole rows of logits, which fused kernels never have",
                f"Set actor_rollout_ref.model.use_fused_kernels=false, or {full}.",
            )


def _update_computes_one_measure(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    measured, pushed = entropy.measure, entropy.pushed_measure
    of_logits = measured != pushed and not (measured.from_log_probs or pushed.from_log_probs)
    if entropy_source(config) is EntropySource.UPDATE and of_logits:
        yield Problem(
            "entropy.pushed.kind",
            f"in bypass mode the update measures {measured.kind!r} and pushes {pushed.kind!r}, but one pass over the "
            "logits computes one measure",
            "Set entropy/pushed=same, entropy/measure=sampled, or algorithm.rollout_correction.bypass_mode=false.",
        )


def _shaping_has_entropies(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    if entropy_source(config) is EntropySource.OLD_LOG_PROBS:
        return
    for part in ("reward_shaping", "advantage_shaping"):
        shaping = getattr(entropy, part)
        if shaping.uses_entropy:
            yield Problem(
                f"entropy.{part}.kind",
                f"{shaping.kind!r} needs the token entropies before the update, which bypass mode does not compute",
                f"Set algorithm.rollout_correction.bypass_mode=false, or entropy/{part}=none.",
            )


def _reward_to_try(config: DictConfig, entropy: EntropyConfig) -> DictConfig | None:
    """Return the user's reward function if it must report which answers are correct."""
    reward = config.reward.custom_reward_function
    asked = entropy.uses_accuracy and entropy.correctness.threshold is None and reward.get("path")
    return reward if asked else None


def _reward_file_is_there(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    reward = _reward_to_try(config, entropy)
    if reward is not None and "://" not in reward.path and not Path(reward.path).exists():
        yield Problem("reward.custom_reward_function.path", f"{reward.path} does not exist", "Correct the path.")


def _reward_reports_correctness(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    """Call the user's reward function once, with an empty answer to the first training prompt."""
    reward = _reward_to_try(config, entropy)
    # A function that queries a served reward model cannot be called before the run.
    if reward is None or config.reward.reward_model.enable or next(_reward_file_is_there(config, entropy), None):
        return
    row = _first_training_row(config)
    if row is not None:
        yield from _outcome_problems(_score_empty_answer(reward, row), f"{reward.name} in {reward.path}", entropy)


def _outcome_problems(outcome: Outcome, function: str, entropy: EntropyConfig) -> Iterator[Problem]:
    key, correctness = "reward.custom_reward_function", entropy.correctness.reward_key
    threshold = "entropy.correctness.threshold: an answer is then correct if its reward exceeds it."
    if outcome.failure is not None:
        yield Note(
            key,
            f"{function} returned no reward for an empty answer: {outcome.failure}",
            "If it rejects empty answers on purpose, change nothing.",
        )
    if outcome.keys is not None and correctness not in outcome.keys:
        yield Problem(
            key,
            f"{function} returns {outcome.keys} without {correctness!r}, so correct answers cannot be identified",
            f"Let it return {correctness!r} (0 or 1) next to the score, or set {threshold}",
        )
    if outcome.number is not None and outcome.number not in (0.0, 1.0):
        yield Note(
            key,
            f"{function} returns the number {outcome.number:g} for an empty answer; veRL reports a bare number as "
            "'acc', which identifies correct answers only if it is 0 or 1",
            f"Let it return a dict with 'score' and {correctness!r} (0 or 1), or set {threshold}",
        )


def _first_training_row(config: DictConfig) -> dict[str, Any] | None:
    file = Path(data_files(config, "train_files")[0])
    if file.suffix != ".parquet" or not file.exists():
        return None
    rows = next(pq.ParquetFile(file).iter_batches(batch_size=1), None)
    return rows.to_pylist()[0] if rows is not None and rows.num_rows else None


def _score_empty_answer(reward: DictConfig, row: dict[str, Any]) -> Outcome:
    answer = {
        "data_source": row.get("data_source"),
        "solution_str": "",
        "ground_truth": (row.get("reward_model") or {}).get("ground_truth"),
        "extra_info": row.get("extra_info") or {},
    }
    kwargs = OmegaConf.to_container(reward.get("reward_kwargs") or OmegaConf.create(), resolve=True)
    return try_reward(reward.path, reward.name, kwargs, answer)


def _state_can_be_resumed(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    try:
        read_resumed_state(config, entropy)
    except StateError as error:
        yield Problem(STATE_FILE, str(error), "")


ENTROPY_CHECKS = [
    _target_is_used,
    _groups_have_rollouts,
    _policy_loss_is_selected,
    _measure_is_computed,
    _update_computes_one_measure,
    _shaping_has_entropies,
    _reward_file_is_there,
    _state_can_be_resumed,
]

DRIVER_CHECKS = [
    _reward_reports_correctness,
]
