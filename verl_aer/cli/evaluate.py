"""`verl-aer evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_aer.cli.arguments import examples, print_table

EXAMPLES = examples(
    "evaluate Qwen/Qwen3-1.7B-Base --data data/aime24.parquet --data data/math500.parquet --n 32",
    "evaluate checkpoints/aer/global_step_200 --data data/math500.parquet --n 8 --out runs/aer-math500",
)


def evaluate(
    model: Annotated[str, typer.Argument(help="Name or folder of a model, or a veRL checkpoint (global_step_N).")],
    data: Annotated[list[Path], typer.Option(help="Prepared parquet file. Repeat for several.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the evaluation.", show_default="evaluations/MODEL"),
    ] = None,
    n: Annotated[int, typer.Option(help="Answers per problem.")] = 32,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Probability mass for nucleus sampling.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the answers.")] = 0,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Reward function as veRL's custom_reward_function, or PATH.py:FUNCTION.",
            show_default="the math reward",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Problems that are sampled together.")] = 64,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs per copy of the model.")] = 1,
    data_parallel: Annotated[int, typer.Option(help="Copies of the model, each with its own GPUs.")] = 1,
) -> None:
    """Sample answers with vLLM, and report pass@k, maj@k, lengths and entropy with confidence intervals."""
    from verl_aer.evaluation.config import MATH_REWARD, EvaluationConfig
    from verl_aer.evaluation.report import summary_table
    from verl_aer.evaluation.run import evaluate
    from verl_aer.evaluation.sampler import Sampling

    config = EvaluationConfig(
        model=model,
        data=data,
        out=out,
        sampling=Sampling(n, temperature, top_p, max_tokens, seed),
        reward=reward or MATH_REWARD,
        batch=batch,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
    )
    print_table(summary_table([evaluate(config)]), markdown=False)
    print(f"written: {config.folder}/summary.json, summary.md, pass_at_k.png, samples/")
