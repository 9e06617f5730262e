"""Run veRL's training workers in a process with or without our plug-in. test_stock_verl.py starts it.

    python -m tests.integration.stock_worker MODEL OUT.pt

It trains and evaluates a policy, a critic and a reference policy with batches in three of veRL's layouts, none of them
from this package's trainers, and saves all outputs, metrics and parameters.

Without the plug-in (``VERL_USE_EXTERNAL_PLUGINS=none``) it installs the CPU platform explicitly, because veRL has none.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import torch
import verl  # noqa: F401 - first: it loads the plug-in, where it is asked for

if os.environ.get("VERL_USE_EXTERNAL_PLUGINS") == "none":
    assert not any(name.startswith("verl_aer") for name in sys.modules)
    import verl_aer.cpu

    verl_aer.cpu.install()
else:
    assert "verl_aer.integration.plugin" in sys.modules

from tensordict import TensorDict
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    FSDPActorConfig,
    FSDPCriticConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
)
from verl.workers.config.engine import TrainingWorkerConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss, sft_loss, value_loss
from verl.workers.utils.padding import left_right_2_no_padding

PROMPT, RESPONSE, VOCABULARY, TEMPERATURE = 4, 6, 19, 0.7
LENGTHS = [(2, 3), (4, 6), (1, 1), (3, 5)]
"""Tokens of each row's prompt and response."""


def rows() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for prompt, response in LENGTHS:
        ids = torch.randint(3, VOCABULARY, (prompt + response,), generator=generator)
        made.append(
            {
                "input_ids": ids,
                "position_ids": torch.arange(prompt + response),
                "prompts": ids[:prompt],
                "responses": ids[prompt:],
                "response_mask": torch.ones(response),
                "loss_mask": torch.cat([torch.zeros(prompt), torch.ones(response)]),
                "old_log_probs": torch.randn(response, generator=generator) - 3.0,
                "advantages": torch.randn(response, generator=generator),
                "values": torch.randn(response, generator=generator),
                "returns": torch.randn(response, generator=generator),
            }
        )
    return made


def v1_layout(columns: list[str] | None = None) -> TensorDict:
    """All columns nested, as veRL's v1 trainers send them; or some of them."""
    made = rows()
    fields = {
        name: torch.nested.as_nested_tensor([row[name] for row in made], layout=torch.jagged)
        for name in columns or made[0]
    }
    return TensorDict(fields, batch_size=len(made))


def sft_layout() -> TensorDict:
    """One sequence per row and what of it counts, without prompts and responses."""
    return v1_layout(["input_ids", "position_ids", "loss_mask"])


def legacy_layout() -> TensorDict:
    """Prompts padded on the left, responses on the right, through veRL's own converter: `trainer.use_v1=false`."""

    def padded(tensor: torch.Tensor, left: int, right: int) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (left, right))

    columns: dict[str, list[torch.Tensor]] = {}
    for row, (prompt, response) in zip(rows(), LENGTHS, strict=True):
        left, right = PROMPT - prompt, RESPONSE - response
        attention = padded(torch.ones(prompt + response, dtype=torch.long), left, right)
        whole = {
            "input_ids": padded(row["input_ids"], left, right),
            "attention_mask": attention,
            "position_ids": (attention.cumsum(-1) - 1).clamp(min=0),
            "prompts": padded(row["prompts"], left, 0),
        }
        of_response = ("responses", "response_mask", "old_log_probs", "advantages", "values", "returns")
        whole |= {name: padded(row[name], 0, right) for name in of_response}
        for name, column in whole.items():
            columns.setdefault(name, []).append(column)
    stacked = {name: torch.stack(column) for name, column in columns.items()}
    return left_right_2_no_padding(TensorDict(stacked, batch_size=len(LENGTHS)))


def worker_of(model: str, model_type: str) -> TrainingWorker:
    """A worker as veRL builds it for a policy, a reference policy or a critic."""
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type=model_type,
            model_config=HFModelConfig(
                path=model, use_remove_padding=False, override_config={"attn_implementation": "sdpa"}
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
                use_torch_compile=False,
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=2,
                infer_micro_batch_size_per_gpu=2,
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
            checkpoint_config=CheckpointConfig(),
        )
    )
    torch.manual_seed(0)
    worker.reset()
    registered = EngineRegistry.get_engine_cls(model_type, "fsdp2")
    assert type(worker.engine) is registered
    assert registered.__module__ == "verl.workers.engine.fsdp.transformer_impl"
    return worker


def plain(value: Any) -> Any:
    """Tensors, numbers and containers of them, without veRL's and TensorDict's own classes."""
    if isinstance(value, torch.Tensor):
        return (value.values() if value.is_nested else value).detach().clone()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return float(value)


def evaluate(worker: TrainingWorker, data: TensorDict) -> dict[str, Any]:
    tu.assign_non_tensor(data, temperature=TEMPERATURE, calculate_entropy=True, compute_loss=False)
    found = worker.infer_batch(data)
    names = ("log_probs", "entropy", "values")
    return {name: plain(found[name]) for name in names if name in found}


def train(worker: TrainingWorker, data: TensorDict, loss: partial) -> dict[str, Any]:
    worker.set_loss_fn(loss)
    tu.assign_non_tensor(data, temperature=TEMPERATURE, calculate_entropy=True, global_batch_size=len(LENGTHS))
    tu.assign_non_tensor(data, mini_batch_size=len(LENGTHS), dataloader_kwargs={"shuffle": False})
    metrics = plain(tu.get(worker.train_mini_batch(data), "metrics"))
    # Measured by the clock.
    return {name: value for name, value in metrics.items() if not name.startswith(("mfu", "perf"))}


def parameters(worker: TrainingWorker) -> dict[str, torch.Tensor]:
    return plain(get_model_state_dict(worker.engine.module, options=StateDictOptions(full_state_dict=True)))


def policy(model: str) -> dict[str, Any]:
    worker, reference = worker_of(model, "language_model"), worker_of(model, "language_model")
    actor = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=2,
        ppo_mini_batch_size=2,
        ppo_micro_batch_size_per_gpu=1,
        entropy_coeff=0.01,
        calculate_entropy=True,
    )
    found = {}
    for layout, loss in ((v1_layout, ppo_loss), (legacy_layout, ppo_loss), (sft_layout, sft_loss)):
        name = layout.__name__
        found[f"policy, {name}"] = evaluate(worker, layout())
        found[f"update, {name}"] = train(worker, layout(), partial(loss, config=actor))
        found[f"reference, {name}"] = evaluate(reference, layout())
    return found | {"policy's parameters": parameters(worker)}


def critic(model: str) -> dict[str, Any]:
    worker = worker_of(model, "value_model")
    config = FSDPCriticConfig(strategy="fsdp2", rollout_n=2, ppo_mini_batch_size=2, ppo_micro_batch_size_per_gpu=1)
    found = {}
    for layout in (v1_layout, legacy_layout):
        name = layout.__name__
        found[f"critic, {name}"] = evaluate(worker, layout())
        found[f"critic's update, {name}"] = train(worker, layout(), partial(value_loss, config=config))
    return found | {"critic's parameters": parameters(worker)}


def main(model: str, out: str) -> None:
    torch.save(policy(model) | critic(model), out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
