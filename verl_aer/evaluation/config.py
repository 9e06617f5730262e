"""The settings of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verl_aer.evaluation.sampler import Sampling

MATH_REWARD = "verl_aer.rewards.math_reward:compute_score"


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and how.

    Args:
        model: a model's name or folder, or a checkpoint of veRL (``global_step_N``).
        data: prepared parquet files.
        out: folder of the evaluation; None: ``evaluations/<model's last name>``.
        sampling: how answers are sampled.
        reward: ``package.module:FUNCTION`` or ``PATH.py:FUNCTION``, as veRL's custom_reward_function.
        batch: problems that are sampled together.
        tensor_parallel: GPUs of one copy of the model.
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
            f"--{name.replace('_', '-')} has to be at least 1"
            for name in ("batch", "tensor_parallel", "data_parallel")
            if getattr(self, name) < 1
        ]
