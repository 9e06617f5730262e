"""Compare the actor's update and the old-log-prob pass in veRL's training worker: ours and stock veRL.

    python -m benchmarks.step

The model has a small body and the full vocabulary of Qwen3, so that the logits dominate the cost of a step. In one
process, alternating, on the same rows: veRL's FSDP2 engine and loss, without an entropy (plain GRPO) and with a fixed
coefficient; our engine and loss with coefficients on the share of rows as in the Countdown run
(`aer/weight/nonzero_frac`, 0.57 in the mean of 220 steps), on all rows, and on none. Ratios of updates are relative to
veRL's fixed coefficient, ratios of the pass without gradient to veRL's pass.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from tensordict import TensorDict
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.config.engine import TrainingWorkerConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss

import verl_aer.integration  # noqa: F401 - imports veRL first, see its comment
from benchmarks.timing import interleaved, machine, table, timed
from examples.countdown.model import build_tokenizer
from verl_aer.integration.batch import WEIGHT_FIELD
from verl_aer.integration.engine import EntropyEngine, install_entropy_engines
from verl_aer.integration.loss import ALPHA_KEY, WEIGHTED_ROWS_KEY, entropy_loss

VOCABULARY = 151_936
ROWS, PROMPT, RESPONSE = 16, 32, 96
MICRO_BATCH_ROWS = 4
COUNTDOWN_SHARE = 9 / 16
REPEATS = 5


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def worker_of(engine: type, folder: Path) -> TrainingWorker:
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=str(folder),
                use_remove_padding=False,
                override_config={"attn_implementation": "sdpa"},
                enable_gradient_checkpointing=True,
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                use_torch_compile=False,
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=MICRO_BATCH_ROWS,
                infer_micro_batch_size_per_gpu=MICRO_BATCH_ROWS,
                mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-6, total_training_steps=1000),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    if engine is EntropyEngine:
        install_entropy_engines(SimpleNamespace(actor=worker))
    assert type(worker.engine) is engine
    return worker


def actor_config(**settings: object) -> FSDPActorConfig:
    return FSDPActorConfig(
        strategy="fsdp2", rollout_n=2, ppo_mini_batch_size=ROWS, ppo_micro_batch_size_per_gpu=1, **settings
    )


def batch(weighted_share: float | None, entropy: bool) -> TensorDict:
    """Make the same rows each time, with coefficients on this share of them; None omits the field."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (ROWS, PROMPT + RESPONSE), generator=generator)
    ones = torch.ones(RESPONSE)
    rows = {
        "input_ids": list(ids),
        "prompts": list(ids[:, :PROMPT]),
        "responses": list(ids[:, PROMPT:]),
        "response_mask": [ones] * ROWS,
        "loss_mask": [torch.cat([torch.zeros(PROMPT), ones])] * ROWS,
        "old_log_probs": [-12.0 * ones] * ROWS,
        "advantages": [(-1.0) ** row * ones for row in range(ROWS)],
        "position_ids": [torch.arange(PROMPT + RESPONSE)] * ROWS,
    }
    fields = {name: torch.nested.as_nested_tensor(row, layout=torch.jagged) for name, row in rows.items()}
    if weighted_share is not None:
        fields[WEIGHT_FIELD] = (torch.arange(ROWS) < weighted_share * ROWS).float()
    data = TensorDict(fields, batch_size=ROWS)
    tu.assign_non_tensor(data, temperature=1.0, calculate_entropy=entropy)
    if weighted_share is not None:
        tu.assign_non_tensor(data, **{ALPHA_KEY: 0.01, WEIGHTED_ROWS_KEY: True})
    return data


def update(worker: TrainingWorker, loss: partial, weighted_share: float | None, entropy: bool) -> float:
    worker.set_loss_fn(loss)
    data = batch(weighted_share, entropy)
    tu.assign_non_tensor(data, mini_batch_size=ROWS, global_batch_size=ROWS, dataloader_kwargs={"shuffle": False})
    return timed(lambda: worker.train_mini_batch(data))


def old_log_probs(worker: TrainingWorker) -> float:
    data = batch(None, entropy=True)
    tu.assign_non_tensor(data, compute_loss=False)
    return timed(lambda: worker.infer_batch(data))


def main() -> int:
    os.environ.update(WORLD_SIZE="1", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        stock, ours = (worker_of(engine, Path(folder)) for engine in (FSDPEngineWithLMHead, EntropyEngine))
    none, fixed = (partial(ppo_loss, actor_config(entropy_coeff=coefficient)) for coefficient in (0.0, 0.01))
    aer = partial(entropy_loss, actor_config(entropy_coeff=0.0, calculate_entropy=True), "token-mean")
    base, base_pass = "veRL, fixed coefficient", "veRL, old log-probs and entropy"
    updates = {
        base: lambda: update(stock, fixed, None, entropy=True),
        "veRL, plain GRPO": lambda: update(stock, none, None, entropy=False),
        "AER, the Countdown run's share of rows": lambda: update(ours, aer, COUNTDOWN_SHARE, entropy=True),
        "AER, all rows": lambda: update(ours, aer, 1.0, entropy=True),
        "AER, all coefficients zero": lambda: update(ours, aer, 0.0, entropy=True),
    }
    passes = {
        base_pass: lambda: old_log_probs(stock),
        "ours, old log-probs and entropy": lambda: old_log_probs(ours),
    }
    wide = 4 * MICRO_BATCH_ROWS * (PROMPT + RESPONSE) * VOCABULARY
    print(f"{machine()}\n\n### A step of {ROWS} rollouts of {PROMPT} + {RESPONSE} tokens, vocabulary {VOCABULARY:,}\n")
    print(table(interleaved(updates, REPEATS), base, wide, "memory / logits of a micro-batch"))
    print(table(interleaved(passes, REPEATS), base_pass, wide, "memory / logits of a micro-batch"), end="")
    torch.distributed.destroy_process_group()
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
