"""Run an evaluation: sample the answers in batches, save each complete batch, and write the report.

One worker process per copy of the model samples its share of the batches (`worker.py`). The process that calls
`evaluate` never loads vLLM, so that it can report why a worker died.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_aer._files import write_text_atomically
from verl_aer._tables import as_markdown
from verl_aer.errors import InputError
from verl_aer.evaluation.config import EvaluationConfig
from verl_aer.evaluation.merge_checkpoint import loadable_model
from verl_aer.evaluation.report import plot_pass_at_k, summary, summary_table
from verl_aer.evaluation.sampler import Sampler
from verl_aer.evaluation.samples import EvalProblem, SampleStore, fingerprint, read_problems, read_run
from verl_aer.evaluation.statistics import Answers
from verl_aer.evaluation.workers import sample_with_workers
from verl_aer.extras import require_extra, require_vllm

Reward = Callable[..., dict[str, Any]]


def evaluate(config: EvaluationConfig) -> list[Answers]:
    """Start or resume an evaluation, and write its report. Returns the answers to every problem.

    Raises:
        InputError: input that cannot be evaluated, or a worker process that died. Complete batches are kept.
        MissingExtraError: vLLM, matplotlib or a package of the reward is not installed.
    """
    # Check now, because the figure is drawn only after all sampling.
    require_vllm("verl-aer evaluate")
    require_extra("matplotlib", "verl-aer evaluate")
    if config.problems():
        raise InputError("; ".join(config.problems()))
    load_reward(config.reward)
    batches, store = open_evaluation(config)
    if store.missing(len(batches)):
        loadable_model(config.model)  # Merge once, before each worker would do it.
        sample_with_workers(config, batches, store)
    answers = read_run(config.folder)
    write_report(config.folder, answers, Path(config.model).name)
    return answers


def open_evaluation(config: EvaluationConfig) -> tuple[list[Sequence[EvalProblem]], SampleStore]:
    """Split the problems into batches, and open the folder of their samples.

    Raises:
        InputError: data that cannot be evaluated, or a folder with samples from other settings.
    """
    problems = read_problems(config.data)
    batches = [problems[start : start + config.batch] for start in range(0, len(problems), config.batch)]
    settings = {
        "model": config.model,
        "data": [file.name for file in config.data],
        "data_sha256": fingerprint(config.data),
        "sampling": asdict(config.sampling),
        "reward": config.reward,
        "batch": config.batch,
        "batches": len(batches),
    }
    return batches, SampleStore(config.folder, settings)


def load_reward(name: str) -> Reward:
    """Load the function ``PATH.py:FUNCTION`` or ``package.module:FUNCTION``.

    Raises:
        InputError: the function does not exist.
    """
    place, _, function = name.partition(":")
    if not function:
        raise InputError(f"--reward {name}: give PATH.py:FUNCTION or package.module:FUNCTION")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise InputError(f"--reward {name}: no such file")
        spec = importlib.util.spec_from_file_location("verl_aer_evaluation_reward", place)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise InputError(f"--reward {name}: {error}") from None
    if not callable(getattr(module, function, None)):
        raise InputError(f"--reward {name}: {place} has no function {function}")
    return getattr(module, function)


def sample_batches(
    batches: Sequence[Sequence[EvalProblem]],
    numbers: Sequence[int],
    store: SampleStore,
    sampler: Sampler,
    reward: Reward,
) -> None:
    """Sample and score the answers of the batches with the given numbers."""
    for number in numbers:
        batch = batches[number]
        answers = sampler.generate([(problem.problem, problem.prompt) for problem in batch])
        samples = [
            _sample(problem, place, generation, reward)
            for problem, of_problem in zip(batch, answers, strict=True)
            for place, generation in enumerate(of_problem)
        ]
        store.add(number, samples)


def _sample(problem: EvalProblem, place: int, generation: Any, reward: Reward) -> dict[str, Any]:
    row = problem.row
    score = reward(
        data_source=row["data_source"],
        solution_str=generation.text,
        ground_truth=row["reward_model"]["ground_truth"],
        extra_info=row.get("extra_info") or {},
    )
    if not isinstance(score, dict) or "acc" not in score:
        raise InputError("the reward function must return a dict with 'score' and 'acc'")
    return {
        "problem": problem.problem,
        "sample": place,
        "source": problem.source,
        "level": problem.level,
        "response": generation.text,
        "tokens": generation.tokens,
        "finish": generation.finish,
        "mean_nll": generation.mean_nll,
        "acc": float(score["acc"]),
        "score": float(score["score"]),
        # Without an extracted answer, the whole text is the vote.
        "pred": str(score.get("pred", generation.text.strip())),
    }


def write_report(folder: Path, problems: Sequence[Answers], title: str) -> None:
    """Write ``summary.json``, ``summary.md`` and ``pass_at_k.png``."""
    table = summary_table([problems])
    write_text_atomically(folder / "summary.json", json.dumps(summary(problems), indent=2) + "\n")
    write_text_atomically(folder / "summary.md", f"# {title}\n\n{table.title}\n\n{as_markdown(table)}")
    plot_pass_at_k({title: [problems]}, title, folder / "pass_at_k.png")
