"""Run one rank of veRL's training worker with our loss, outside Ray. test_engines.py starts it.

    WORLD_SIZE=1 RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python -m tests.integration.engine_rank MODEL OUT

It runs every case of `CASES` for this world size on the same global batch, and saves the results.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.config.engine import TrainingWorkerConfig
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine_workers import TrainingWorker

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from tests.integration.test_loss_equals_verl import LENGTHS, nested
from tests.integration.test_loss_equals_verl import make_rows as make_loss_rows
from verl_aer.integration.batch import WEIGHT_FIELD
from verl_aer.integration.engine import EntropyEngine, install_entropy_engines
from verl_aer.integration.loss import ALPHA_KEY, WEIGHTED_ROWS_KEY, entropy_loss
from verl_aer.integration.measure_request import MEASURE_KEY, encode_measure
from verl_aer.parts.measure import Clamped, Full, Measure, Nucleus

ALPHA = 0.05
TEMPERATURE = 0.7
VOCABULARY = 19
WEIGHTS = [1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.25, 0.25]


class Case(NamedTuple):
    """How the same global batch is trained."""

    ranks: int
    strategy: str = "fsdp2"
    micro_batch: int | None = 4
    """Rows; None: veRL's dynamic batching, by tokens."""
    order: tuple[int, ...] = tuple(range(len(LENGTHS)))
    lora_rank: int = 0
    measure: Measure = Full()
    engine: type = EntropyEngine
    weighted_rows: bool = False
    """Whether the update may leave out the entropy of rows of weight 0."""
    gradient_checkpointing: bool = False
    packed: bool = False
    """One row of all tokens without padding; the model tells the sequences apart by their positions."""
    fused: bool = False
    """veRL's linear layer and cross-entropy in one, which never has a whole row of logits."""


CASES = {
    "whole": Case(ranks=1, micro_batch=8),
    "one row at a time": Case(ranks=1, micro_batch=1),
    "dynamic batches": Case(ranks=1, micro_batch=None),
    "rows in another order": Case(ranks=1, order=(6, 1, 4, 3, 0, 5, 7, 2)),
    "two ranks": Case(ranks=2),
    "two ranks, dynamic batches": Case(ranks=2, micro_batch=None),
    "two ranks, rows in another order": Case(ranks=2, micro_batch=2, order=(6, 1, 4, 3, 0, 5, 7, 2)),
    "two ranks, FSDP 1": Case(ranks=2, strategy="fsdp", micro_batch=2),
    "veRL's own engine": Case(ranks=1, strategy="fsdp", micro_batch=8, engine=transformer_impl.FSDPEngineWithLMHead),
    "weighted rows": Case(ranks=1, micro_batch=8, weighted_rows=True),
    "weighted rows, two ranks, dynamic batches": Case(ranks=2, micro_batch=None, weighted_rows=True),
    "clamped": Case(ranks=1, micro_batch=8, measure=Clamped(p=0.4)),
    "clamped, two ranks, dynamic batches": Case(ranks=2, micro_batch=None, measure=Clamped(p=0.4)),
    "nucleus": Case(ranks=1, micro_batch=8, measure=Nucleus(p=0.6)),
    "nucleus, two ranks": Case(ranks=2, micro_batch=2, measure=Nucleus(p=0.6)),
    "LoRA": Case(ranks=1, micro_batch=8, lora_rank=4),
    "LoRA, two ranks, dynamic batches": Case(ranks=2, micro_batch=None, lora_rank=4),
    "gradient checkpointing": Case(ranks=1, micro_batch=4, gradient_checkpointing=True),
    "packed": Case(ranks=1, micro_batch=4, packed=True),
    "packed, weighted rows, two ranks, dynamic batches": Case(
        ranks=2, micro_batch=None, packed=True, weighted_rows=True
    ),
    # Last: veRL replaces the forward pass of the model's class, for all that follow in the process.
    "fused": Case(ranks=1, micro_batch=8, fused=True),
    "fused, weighted rows, two ranks, dynamic batches": Case(ranks=2, micro_batch=None, fused=True, weighted_rows=True),
}


class FSDP1WithoutAccelerator(transformer_impl.FSDP):
    """FSDP 1 without what it refuses on a CPU: sending parameters that all ranks have loaded from one file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "sync_module_states": False, "device_id": torch.device("cpu")})


def make_rows() -> list[dict[str, torch.Tensor]]:
    """The rollouts of the loss's own tests, with what an engine needs besides."""
    rows = make_loss_rows(padding_rows=0, weights=WEIGHTS)
    for number, row in enumerate(rows):
        row |= {"position_ids": torch.arange(len(row["input_ids"])), "row": torch.tensor(number)}
    return rows


def rank_batch(case: Case, rank: int) -> TensorDict:
    """The rows of this rank."""
    rows = make_rows()
    share = len(rows) // case.ranks
    mine = [rows[number] for number in case.order[rank * share : (rank + 1) * share]]
    scalars = ("row", WEIGHT_FIELD)
    fields = {name: nested([row[name] for row in mine]) for name in mine[0] if name not in scalars}
    fields |= {name: torch.stack([row[name] for row in mine]) for name in scalars}
    data = TensorDict(fields, batch_size=len(mine))
    tu.assign_non_tensor(data, temperature=TEMPERATURE, calculate_entropy=True, **{ALPHA_KEY: ALPHA})
    request = encode_measure(case.measure)
    if request is not None:
        tu.assign_non_tensor(data, **{MEASURE_KEY: request})
    return data


def training_worker(case: Case, model: str) -> TrainingWorker:
    engine = FSDPEngineConfig(
        strategy=case.strategy,
        mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        use_torch_compile=False,
        use_dynamic_bsz=case.micro_batch is None,
        max_token_len_per_gpu=16,
        infer_max_token_len_per_gpu=16,
        micro_batch_size_per_gpu=case.micro_batch,
        infer_micro_batch_size_per_gpu=case.micro_batch,
    )
    # One step of plain gradient descent of length 1: what the parameters lose is the gradient.
    descent = FSDPOptimizerConfig(optimizer="SGD", lr=1.0, weight_decay=0.0, clip_grad=1e9, total_training_steps=1)
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=model,
                use_remove_padding=case.packed,
                override_config={"attn_implementation": "sdpa"},
                enable_gradient_checkpointing=case.gradient_checkpointing,
                use_fused_kernels=case.fused,
                fused_kernel_options={"impl_backend": "torch"},
                lora_rank=case.lora_rank,
            ),
            engine_config=engine,
            optimizer_config=descent,
            checkpoint_config=CheckpointConfig(),
        )
    )
    torch.manual_seed(0)
    worker.reset()
    if case.engine is EntropyEngine:
        install_entropy_engines(SimpleNamespace(actor=worker))
    actor = FSDPActorConfig(
        strategy=case.strategy,
        rollout_n=2,
        ppo_mini_batch_size=4,
        ppo_micro_batch_size_per_gpu=1,
        loss_agg_mode="token-mean",
        entropy_coeff=0.0,
        calculate_entropy=True,
    )
    worker.set_loss_fn(partial(entropy_loss, actor, "token-mean"))
    return worker


def parameters(worker: TrainingWorker) -> dict[str, torch.Tensor]:
    state = get_model_state_dict(worker.engine.module, options=StateDictOptions(full_state_dict=True))
    return {name: value.detach().clone() for name, value in state.items()}


def run(case: Case, model: str) -> dict[str, Any]:
    """Entropies by row from the pass without gradient, then one update: its metrics and its gradient."""
    if case.strategy == "fsdp":
        # veRL's registry has none for a CPU and takes one per process: no more than one case of its ranks is FSDP 1.
        verls = transformer_impl.FSDPEngineWithLMHead
        EngineRegistry.register(model_type="language_model", backend="fsdp", device="cpu")(verls)
    worker = training_worker(case, model)
    assert type(worker.engine) is case.engine
    data = rank_batch(case, worker.rank)
    tu.assign_non_tensor(data, compute_loss=False)
    entropies = worker.infer_batch(data)["entropy"].unbind()

    before = parameters(worker)
    data = rank_batch(case, worker.rank)
    total = len(LENGTHS)
    tu.assign_non_tensor(data, **{WEIGHTED_ROWS_KEY: case.weighted_rows})
    tu.assign_non_tensor(data, mini_batch_size=total, global_batch_size=total, dataloader_kwargs={"shuffle": False})
    metrics = tu.get(worker.train_mini_batch(data), "metrics")
    after = parameters(worker)
    return {
        "entropy": dict(zip(data["row"].tolist(), entropies, strict=True)),
        "metrics": metrics,
        "gradient": {name: before[name] - after[name] for name in before},
    }


def main(model: str, out: str) -> None:
    transformer_impl.FSDP = FSDP1WithoutAccelerator
    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    found = {name: run(case, model) for name, case in CASES.items() if case.ranks == ranks}
    torch.save(found, Path(out) / f"{ranks}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
