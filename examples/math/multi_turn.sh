#!/usr/bin/env bash
# Qwen3-4B with a tool, in several turns: the model's turns are trained, the tool's output is masked. Eight GPUs of
# 80 GB. TOOLS is the YAML file of veRL's tools; `+entropy=epo` was made for such rollouts.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
RECIPE=(
    data.train_batch_size=128
    data.max_prompt_length=2048
    data.max_response_length=8192
    data.return_raw_chat=true
    actor_rollout_ref.rollout.n=8
    actor_rollout_ref.rollout.multi_turn.enable=true
    actor_rollout_ref.rollout.multi_turn.max_assistant_turns=5
    "actor_rollout_ref.rollout.multi_turn.tool_config_path=${TOOLS:-tools.yaml}"
    actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent
    actor_rollout_ref.actor.ppo_mini_batch_size=32
    actor_rollout_ref.actor.use_dynamic_bsz=true
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=20480
    actor_rollout_ref.rollout.gpu_memory_utilization=0.7
    actor_rollout_ref.model.enable_gradient_checkpointing=true
    trainer.total_training_steps=100
    trainer.n_gpus_per_node=8
    trainer.nnodes=1
)
run_recipe multi_turn Qwen/Qwen3-4B "$@"
