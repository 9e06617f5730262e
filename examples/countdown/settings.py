"""Hydra overrides of the example: data, policy, reward and training settings.

The README in this folder explains how the numbers were found. Hardware, entropy method, logger and folder names are set
elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from examples.countdown.rollouts import RESPONSE_LENGTH
from examples.countdown.task import LONGEST_PROMPT

STEPS = 220
PROMPTS = 15
ROLLOUTS = 8
MINI_BATCHES = 5
LEARNING_RATE = 1.5e-4
TEST_SAMPLES = 8
"""Rollouts per held-out prompt, at the training temperature."""
AER_OVERRIDES = [
    "entropy.target.tau=0.6",
    "entropy.controller.ki=0.04",
    "entropy.controller.kp=2.0",
    "entropy.controller.ema=0.5",
    "entropy.controller.alpha_max=0.5",
]
"""For `entropy=aer`. tau: there are too few steps to fall to the default target, 0.4 of the start, and stay there.
kp: at this learning rate the entropy changes fast, and an integral term would oscillate far around the target.
ki, ema: with only 15 prompts per step, the coefficient should follow the entropy and not its measurement noise.
alpha_max: room for the pushes of kp."""

WITHOUT_FLASH_ATTENTION = [
    "actor_rollout_ref.model.use_remove_padding=false",
    "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
]
"""veRL's policy then uses PyTorch's attention on padded rows. A critic would still need flash-attn."""


def verl_overrides(data: Path, model: Path, seed: int, steps: int = STEPS) -> list[str]:
    """List the overrides of veRL's `ppo_trainer` that define the example.

    Args:
        data: folder with `train.parquet` and `test.parquet`.
        model: folder of the warm start.
        seed: seed of sampling and mini-batches; prompts come in the order of the file.
        steps: training steps; the held-out prompts are evaluated after the last step.
    """
    reward = Path(__file__).with_name("reward.py").resolve()
    rows = PROMPTS * ROLLOUTS // MINI_BATCHES
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    return [
        f"data.train_files={data.resolve()}/train.parquet",
        f"data.val_files={data.resolve()}/test.parquet",
        # In file order every batch has the same mix of levels. Shuffled batches do not, and as levels differ in entropy
        # (0.2 to 0.7 nats at the start), the step's mean would depend on the mix.
        "data.shuffle=false",
        f"data.train_batch_size={PROMPTS}",
        f"data.max_prompt_length={LONGEST_PROMPT}",
        f"data.max_response_length={RESPONSE_LENGTH}",
        f"data.seed={seed}",
        f"reward.custom_reward_function.path={reward}",
        "reward.custom_reward_function.name=compute_score",
        "algorithm.adv_estimator=grpo",
        f"actor_rollout_ref.model.path={model.resolve()}",
        f"{actor}.optim.lr={LEARNING_RATE}",
        f"{actor}.ppo_mini_batch_size={PROMPTS // MINI_BATCHES}",
        f"{actor}.ppo_micro_batch_size_per_gpu={rows}",
        f"{actor}.ppo_epochs=1",
        f"{actor}.clip_ratio=0.2",
        f"{actor}.loss_agg_mode=token-mean",
        f"{actor}.use_kl_loss=false",
        f"{actor}.data_loader_seed={seed}",
        f"{actor}.fsdp_config.seed={seed}",
        f"{rollout}.n={ROLLOUTS}",
        f"{rollout}.temperature=1.0",
        f"{rollout}.seed={seed}",
        f"{rollout}.log_prob_micro_batch_size_per_gpu={PROMPTS * ROLLOUTS}",
        f"{rollout}.max_model_len={LONGEST_PROMPT + RESPONSE_LENGTH}",
        f"{rollout}.val_kwargs.n={TEST_SAMPLES}",
        f"{rollout}.val_kwargs.do_sample=true",
        f"{rollout}.val_kwargs.temperature=1.0",
        "trainer.val_before_train=false",
        f"trainer.test_freq={steps}",
        "trainer.save_freq=-1",
        f"trainer.total_training_steps={steps}",
        "trainer.n_gpus_per_node=1",
        "trainer.nnodes=1",
    ]
