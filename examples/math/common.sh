# shellcheck shell=bash
# Sourced by the recipes of this folder: shared settings, and functions that start, check or print a run.
#
#   recipe METHOD [OVERRIDES...]      METHOD is any of `verl-aer methods`
#   DRY_RUN=1 recipe METHOD           prints the command, composes its config and checks it; needs no GPU and no data
#   OVERRIDES_ONLY=1 recipe METHOD    prints the run's overrides, one per line, for launchers that choose its folders
#
# DATA is the folder with the prepared files, MODEL the policy, OUT the folder for checkpoints and logs, SEED the seed.

set -euo pipefail

DATA=${DATA:-data}
SEED=${SEED:-0}
PYTHON=${PYTHON:-python}

run_recipe() {
    local name=$1 model=$2
    shift 2
    local method=${1:-aer}
    [ $# -gt 0 ] && shift
    local out=${OUT:-runs}/$name/$method-seed$SEED
    local overrides=(
        "+entropy=$method"
        "data.train_files=$DATA/dapo_math_17k.parquet"
        "data.val_files=[$DATA/aime24.parquet,$DATA/aime25.parquet,$DATA/amc23.parquet,$DATA/math500.parquet]"
        "data.seed=$SEED"
        "data.filter_overlong_prompts=true"
        "actor_rollout_ref.model.path=${MODEL:-$model}"
        "actor_rollout_ref.actor.optim.lr=1e-6"
        "actor_rollout_ref.actor.use_kl_loss=false"
        "actor_rollout_ref.actor.loss_agg_mode=token-mean"
        "actor_rollout_ref.actor.data_loader_seed=$SEED"
        "actor_rollout_ref.rollout.name=vllm"
        "actor_rollout_ref.rollout.temperature=1.0"
        "actor_rollout_ref.rollout.val_kwargs.do_sample=true"
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0"
        "actor_rollout_ref.rollout.val_kwargs.n=4"
        "algorithm.adv_estimator=grpo"
        "reward.custom_reward_function.path=pkg://verl_aer.rewards.math_reward"
        "reward.custom_reward_function.name=compute_score"
        "trainer.logger=[console,file]"
        "trainer.test_freq=20"
        "trainer.save_freq=20"
        "${RECIPE[@]}"
        "$@"
    )
    if [ "${OVERRIDES_ONLY:-0}" = 1 ]; then
        printf '%s\n' "${overrides[@]}"
        exit
    fi
    local config=(
        "trainer.experiment_name=$name-$method-seed$SEED"
        "trainer.default_local_dir=$out/checkpoints"
        "trainer.validation_data_dir=$out/validation"
    )
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf '%q ' "$PYTHON" -m verl.trainer.main_ppo "${config[@]}" "${overrides[@]}"
        echo
        exec "$PYTHON" -m verl_aer.cli doctor --no-local-checks "${config[@]}" "${overrides[@]}"
    fi
    mkdir -p "$out"
    VERL_FILE_LOGGER_PATH=$out/metrics.jsonl exec "$PYTHON" -m verl.trainer.main_ppo "${config[@]}" "${overrides[@]}"
}
