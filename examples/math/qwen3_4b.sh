#!/usr/bin/env bash
# Qwen3-4B-Base on DAPO-Math-17k: eight GPUs of 80 GB. README.md lists the paper's settings.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
RECIPE=(
    data.train_batch_size=256
    data.max_prompt_length=1024
    data.max_response_length=8192
    actor_rollout_ref.rollout.n=8
    actor_rollout_ref.actor.ppo_mini_batch_size=64
    actor_rollout_ref.actor.use_dynamic_bsz=true
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=18432
    actor_rollout_ref.rollout.gpu_memory_utilization=0.7
    actor_rollout_ref.model.enable_gradient_checkpointing=true
    trainer.total_training_steps=200
    trainer.n_gpus_per_node=8
    trainer.nnodes=1
)
run_recipe qwen3_4b Qwen/Qwen3-4B-Base "$@"
