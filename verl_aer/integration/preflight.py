"""Checks of the composed config, made before any Ray actor or GPU is used.

Each check is one function from the config to its problems; ``check_config`` runs them all, so that one attempt shows
everything that has to be fixed. A problem stops the run; a note does not, as the run may work all the same.
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
    """Something that may be wrong, and does not stop the run."""


class CheckedConfig(NamedTuple):
    """What ``check_config`` found.

    entropy: the parsed node ``entropy``, None where it cannot be parsed. problems: stop a run. notes: do not.
    """

    entropy: EntropyConfig | None
    problems: list[Problem]
    notes: list[Problem]


def check_config(config: DictConfig, elsewhere: bool = False, on_driver: bool = False) -> CheckedConfig:
    """Parse the node ``entropy`` and find every problem of ``config`` that the entropy control can see.

    It never raises.

    Args:
        config: the composed config of a run.
        elsewhere: it is for another machine, whose devices and files are not looked for here.
        on_driver: the run has not begun: the user's reward function may be called once.
    """
    checks = CONFIG_CHECKS if elsewhere else [*CONFIG_CHECKS, *MACHINE_CHECKS]
    entropy, found = None, []
    try:
        entropy = read_entropy_config(config)
    except ConfigError as error:
        found += error.problems
    except Exception as error:
        # The trainer would read it in the same way, and raise the same.
        fix = "Correct this part of the config."
        found.append(Problem("entropy", f"cannot be read: {_in_one_line(error)}", fix))
    found += _problems(checks, config)
    if entropy is not None:
        found += _problems([*ENTROPY_CHECKS, *(DRIVER_CHECKS if on_driver else [])], config, entropy)
    problems = [problem for problem in found if not isinstance(problem, Note)]
    return CheckedConfig(entropy, problems, [problem for problem in found if isinstance(problem, Note)])


def read_entropy_config(config: DictConfig) -> EntropyConfig:
    """The parsed ``entropy`` node. Raises ConfigError with all of its problems."""
    node = config.get("entropy")
    if node is None:
        raise ConfigError(
            [
                Problem(
                    "entropy",
                    "the config has no such node",
                    "Add `+entropy=aer`.",
                )
            ]
        )
    return parse_entropy_config(OmegaConf.to_container(node, resolve=True))


def entropy_source(config: DictConfig) -> EntropySource:
    """In bypass mode veRL takes the rollout's log-probs for the old ones, and has no entropy before the update."""
    correction = config.algorithm.get("rollout_correction") or {}
    return EntropySource.UPDATE if correction.get("bypass_mode", False) else EntropySource.OLD_LOG_PROBS


def _problems(checks: list[Callable[..., Iterator[Problem]]], *args: Any) -> list[Problem]:
    """What the checks find. One that fails itself is a note: the run may be fine."""
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
                    "The run does not need it.",
                )
            )
    return problems


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# ------------------------------------------------------------------ veRL's settings around the entropy control


def _plugin_is_whole(config: DictConfig) -> Iterator[Problem]:
    """What failed while the plug-in was loaded was logged, and failed no import of veRL's."""
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
    "remax": "samples no greedy baseline for it",
    "gdpo": "hands it no components of the reward",
    "optimal_token_baseline": "hands it no sum_pi_squared",
    "tir_optimal_token_baseline": "hands it no sum_pi_squared",
}
"""Registered in veRL 0.9.1, and failing in the first step of its v1 trainers with or without this package."""


def _estimator_runs(config: DictConfig) -> Iterator[Problem]:
    estimator = config.algorithm.adv_estimator
    if estimator in UNSUPPORTED_ESTIMATORS:
        yield Problem(
            "algorithm.adv_estimator",
            f"veRL's v1 trainer {UNSUPPORTED_ESTIMATORS[estimator]}, so {estimator!r} would fail in the first step",
            "Use another estimator, such as algorithm.adv_estimator=grpo or rloo.",
        )


def _separate_async_can_start(config: DictConfig) -> Iterator[Problem]:
    """What veRL's trainer asserts once the run has started."""
    if TRAINER_MODES.get(config.trainer.v1.trainer_mode) != "separate_async":
        return
    rollout, mini_batch = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor.ppo_mini_batch_size
    updates, batch = config.trainer.v1.separate_async.parameter_sync_step, config.data.train_batch_size
    if batch != updates * mini_batch:
        yield Problem(
            "data.train_batch_size",
            f"is {batch}, and {updates} local updates (trainer.v1.separate_async.parameter_sync_step) of {mini_batch} "
            f"prompts ({ACTOR}.ppo_mini_batch_size) make {updates * mini_batch}",
            f"Set data.train_batch_size={updates * mini_batch}.",
        )
    for key in ("nnodes", "n_gpus_per_node"):
        if rollout[key] <= 0:
            yield Problem(
                f"actor_rollout_ref.rollout.{key}",
                "separate_async needs devices of the rollout's own, and there are none",
                f"Set actor_rollout_ref.rollout.{key} to 1 or more.",
            )
    if rollout.checkpoint_engine.backend == "naive":
        yield Problem(
            "actor_rollout_ref.rollout.checkpoint_engine.backend",
            "the backend 'naive' carries weights within a device, and separate_async has to send them to others",
            "Set it to nccl (or hccl, nixl, mooncake); on a CPU +hardware=cpu sets it to gloo.",
        )


def _megatron_entropy_is_whole(config: DictConfig) -> Iterator[Problem]:
    """The backward of veRL's `_VocabParallelEntropy` edits its logits in place, and restores them.

    Chunks are views of one tensor and share its version counter: after the first chunk's backward autograd refuses
    the second's.
    """
    actor = config.actor_rollout_ref.actor
    if actor.strategy == "megatron" and actor.megatron.entropy_from_logits_with_chunking:
        yield Problem(
            f"{ACTOR}.megatron.entropy_from_logits_with_chunking",
            "the entropy gets a gradient here, and veRL's chunked entropy on Megatron has none that works: each "
            "chunk's backward edits the logits that the next one has saved, so the first update would fail",
            f"Set {ACTOR}.entropy_from_logits_with_chunking=false (and the same below {ACTOR}.megatron).",
        )


def _norm_has_a_scale(config: DictConfig) -> Iterator[Problem]:
    actor = config.actor_rollout_ref.actor
    if actor.loss_agg_mode == "seq-mean-token-sum-norm" and actor.loss_scale_factor is None:
        yield Problem(
            f"{ACTOR}.loss_scale_factor",
            "seq-mean-token-sum-norm without it divides by the padded width of each micro-batch, so the loss "
            "depends on how batches are cut",
            f"Set {ACTOR}.loss_scale_factor to data.max_response_length ({config.data.max_response_length}).",
        )


def _device_is_there(config: DictConfig) -> Iterator[Problem]:
    here, asked = get_platform().device_name, config.trainer.device
    if here == "cpu" and asked != "cpu":
        yield Problem(
            "trainer.device",
            f"{asked!r} is asked for, and no accelerator was found here",
            "Add +hardware=cpu to train on the CPU, or run `verl-aer doctor` to see what is missing.",
        )


def _data_files_are_there(config: DictConfig) -> Iterator[Problem]:
    for key in ("train_files", "val_files"):
        for file in data_files(config, key):
            # A file on a remote file system (hdfs://, s3://) is veRL's to fetch.
            if "://" not in file and not Path(file).exists():
                yield Problem(f"data.{key}", f"{file} does not exist", f"Prepare it, or correct data.{key}.")


CONFIG_CHECKS = [
    _plugin_is_whole,
    _trainer_mode,
    _no_second_entropy_term,
    _entropy_is_computed,
    _no_distillation,
    _estimator_runs,
    _separate_async_can_start,
    _megatron_entropy_is_whole,
    _norm_has_a_scale,
]

MACHINE_CHECKS = [
    _device_is_there,
    _data_files_are_there,
]

# ------------------------------------------------------------------ what a setting of the entropy control asks for


def _target_is_used(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    target, controller = entropy.target.kind, entropy.controller
    if target != "none" and not (controller.uses_target or entropy.regularizer.uses_target):
        yield Note(
            "entropy.target.kind",
            f"the controller {controller.kind!r} does not use the target {target!r}: it is only logged",
            "Set entropy/controller=pi to hold the entropy at it, or entropy/target=none.",
        )


def _groups_are_groups(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    n = config.actor_rollout_ref.rollout.n
    if entropy.uses_accuracy and n < 2:
        yield Problem(
            "actor_rollout_ref.rollout.n",
            f"a prompt's difficulty is its group's accuracy, and groups have {n} rollout",
            "Set actor_rollout_ref.rollout.n to 2 or more (8 is usual), or use a method with "
            "allocation `uniform`, such as +entropy=aer_no_allocation.",
        )


def _verls_own_part_is_chosen(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    """A method that is a policy loss of veRL's does nothing beside another one. Numbers may be tuned, names not."""
    for key, value in get_method(entropy.method).verl.items():
        found = OmegaConf.select(config, key)
        if isinstance(value, str) and found != value:
            yield Problem(key, f"is {found!r}, and {entropy.method!r} is {value!r}", f"Set {key}={value}.")


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
                f"the training engine {actor.strategy!r} computes the entropy of the whole vocabulary and not "
                f"{measure.kind!r}",
                f"Set {ACTOR}.strategy to {' or '.join(BACKENDS)}, or {full}.",
            )
        if config.actor_rollout_ref.model.use_fused_kernels:
            yield Problem(
                key,
                f"fused kernels never have a whole row of logits, and {measure.kind!r} needs one",
                f"Set actor_rollout_ref.model.use_fused_kernels=false, or {full}.",
            )


def _update_computes_one_measure(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    measured, pushed = entropy.measure, entropy.pushed_measure
    of_logits = measured != pushed and not (measured.from_log_probs or pushed.from_log_probs)
    if entropy_source(config) is EntropySource.UPDATE and of_logits:
        yield Problem(
            "entropy.pushed.kind",
            f"in bypass mode {measured.kind!r} is measured in the update, where {pushed.kind!r} is pushed, and one "
            "pass over the logits computes one measure",
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
                f"{shaping.kind!r} needs the tokens' entropies before the update, and bypass mode has none",
                f"Set algorithm.rollout_correction.bypass_mode=false, or entropy/{part}=none.",
            )


def _asked_reward(config: DictConfig, entropy: EntropyConfig) -> DictConfig | None:
    """The user's reward function, where it has to say which answers are correct."""
    reward = config.reward.custom_reward_function
    asked = entropy.uses_accuracy and entropy.correctness.threshold is None and reward.get("path")
    return reward if asked else None


def _reward_file_is_there(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    reward = _asked_reward(config, entropy)
    if reward is not None and "://" not in reward.path and not Path(reward.path).exists():
        yield Problem("reward.custom_reward_function.path", f"{reward.path} does not exist", "Correct the path.")


def _reward_reports_correctness(config: DictConfig, entropy: EntropyConfig) -> Iterator[Problem]:
    """Calls the user's reward function once, with an empty answer to the first training prompt."""
    reward = _asked_reward(config, entropy)
    # A function that asks a served reward model cannot be called before the run.
    if reward is None or config.reward.reward_model.enable or next(_reward_file_is_there(config, entropy), None):
        return
    row = _first_training_row(config)
    if row is not None:
        yield from _of_outcome(_score_empty_answer(reward, row), f"{reward.name} in {reward.path}", entropy)


def _of_outcome(outcome: Outcome, function: str, entropy: EntropyConfig) -> Iterator[Problem]:
    key, correctness = "reward.custom_reward_function", entropy.correctness.reward_key
    threshold = "entropy.correctness.threshold: an answer is then correct when its reward is above it."
    if outcome.failure is not None:
        yield Note(
            key,
            f"{function} gave no reward for an empty answer: {outcome.failure}",
            "If it refuses empty answers on purpose, nothing has to be changed.",
        )
    if outcome.keys is not None and correctness not in outcome.keys:
        yield Problem(
            key,
            f"{function} returns {outcome.keys} and no {correctness!r}, so nothing says which answers are correct",
            f"Let it return {correctness!r} (0 or 1) beside the score, or set {threshold}",
        )
    if outcome.number is not None and outcome.number not in (0.0, 1.0):
        yield Note(
            key,
            f"{function} returns the number {outcome.number:g} for an empty answer; veRL reports a bare number as "
            "'acc', which says which answers are correct only where it is 0 or 1",
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
    _groups_are_groups,
    _verls_own_part_is_chosen,
    _measure_is_computed,
    _update_computes_one_measure,
    _shaping_has_entropies,
    _reward_file_is_there,
    _state_can_be_resumed,
]

DRIVER_CHECKS = [
    _reward_reports_correctness,
]
