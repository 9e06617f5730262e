"""Settings of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verl_aer.evaluation.sampler import Sampling

MATH_REWARD = "verl_aer.rewards.math_reward:compute_score"


@dataclass(frozen=True)
class EvaluationConfig:
    """Model, data and settings of an evaluation.

    Args:
        model: name or folder of a model, or a veRL checkpoint (``global_step_N``).
        data: prepared parquet files.
        out: folder of the evaluation; None: ``evaluations/<last part of the model's name>``.
        sampling: how answers are sampled.
        reward: ``package.module:FUNCTION`` or ``PATH.py:FUNCTION``, as veRL's custom_reward_function.
        batch: number of problems that are sampled together.
        tensor_parallel: GPUs per copy of the model.
        data_parallel: copies of the model.
    """

    model: str
    data: Sequence[Path]
    out: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)
    reward: str = MATH_REWARD
    batch: int = 64
    tensor_parallel: int = 1
    data_parallel: int = 1

    @property
    def folder(self) -> Path:
        return self.out or Path("evaluations") / Path(self.model).name

    def problems(self) -> list[str]:
        return self.sampling.problems() + [
            f"--{name.replace('_', '-')} must be at least 1"
            for name in ("batch", "tensor_parallel", "data_parallel")
            if getattr(self, name) < 1
        ]
