"""An evaluation from data files to its report: batch after batch, each kept as soon as it is whole."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_aer._files import read_json, write_text_atomically
from verl_aer._tables import as_markdown, as_text
from verl_aer.errors import InputError
from verl_aer.evaluation.report import plot_pass_at_k, summary, summary_table
from verl_aer.evaluation.samples import Problem, SampleStore, fingerprint, gather
from verl_aer.evaluation.statistics import Answers

Reward = Callable[..., dict[str, Any]]
PLAIN_PROGRESS_SECONDS = 10.0


def load_reward(name: str) -> Reward:
    """The function ``PATH.py:FUNCTION`` or ``package.module:FUNCTION``.

    Raises:
        InputError: there is none.
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


def settings_of(
    model: str,
    data: Sequence[Path],
    sampling: Mapping[str, Any],
    reward: str,
    batch: int,
    batches: int,
) -> dict[str, Any]:
    """What decides an evaluation's samples, as `settings.json` keeps it."""
    return {
        "model": model,
        "data": [file.name for file in data],
        "data_sha256": fingerprint(data),
        "sampling": dict(sampling),
        "reward": reward,
        "batch": batch,
        "batches": batches,
    }


def require_same_settings(folders: Mapping[str, Path]) -> None:
    """Evaluations can be compared if they differ in the model, in n and in chance only: pass@k is unbiased for any n.

    Args:
        folders: label -> the folder of its evaluation.

    Raises:
        InputError: two differ in data, reward, temperature, top-p or the length of an answer; each is named.
    """
    (base, first), *others = ((label, _compared(folder)) for label, folder in folders.items())
    told = [
        f"{key}: {first[key]!r} in {base}, {settings[key]!r} in {label}"
        for label, settings in others
        for key in first
        if settings[key] != first[key]
    ]
    if told:
        raise InputError(f"evaluations of different settings cannot be compared ({'; '.join(told)})")


def _compared(folder: Path) -> dict[str, Any]:
    settings = read_json(folder / "settings.json")
    sampling = settings["sampling"]
    return {
        "SHA-256 of --data": settings["data_sha256"][:12],
        "--reward": settings["reward"],
        "--temperature": sampling["temperature"],
        "--top-p": sampling["top_p"],
        "--max-tokens": sampling["max_tokens"],
    }


def batches_of(problems: Sequence[Problem], size: int) -> list[Sequence[Problem]]:
    return [problems[start : start + size] for start in range(0, len(problems), size)]


def sample_batches(
    batches: Sequence[Sequence[Problem]], mine: Sequence[int], store: SampleStore, sampler: Any, reward: Reward
) -> Iterator[int]:
    """Answer the batches of the numbers ``mine``; how many answers each of them got."""
    for number in mine:
        batch = batches[number]
        answers = sampler.generate([(problem.problem, problem.prompt) for problem in batch])
        samples = [
            _sample(problem, place, generation, reward)
            for problem, of_problem in zip(batch, answers, strict=True)
            for place, generation in enumerate(of_problem)
        ]
        store.add(number, samples)
        yield len(samples)


def _sample(problem: Problem, place: int, generation: Any, reward: Reward) -> dict[str, Any]:
    row = problem.row
    score = reward(
        data_source=row["data_source"],
        solution_str=generation.text,
        ground_truth=row["reward_model"]["ground_truth"],
        extra_info=row.get("extra_info") or {},
    )
    if not isinstance(score, dict) or "acc" not in score:
        raise InputError("the reward function has to return a dict with 'score' and 'acc'")
    return {
        "problem": problem.problem,
        "sample": place,
        "source": problem.source,
        "level": problem.level,
        "response": generation.text,
        "tokens": generation.tokens,
        "finish": generation.finish,
        "nats": generation.nats,
        "acc": float(score["acc"]),
        "score": float(score["score"]),
        # Without an extracted answer the whole text has the vote.
        "pred": str(score.get("pred", generation.text.strip())),
    }


def with_progress(counts: Iterator[int], batches: int) -> int:
    """Run through, and say how far it is; the number of answers that were sampled."""
    started = told = time.monotonic()
    answers, live = 0, sys.stderr.isatty()
    for done, count in enumerate(counts, start=1):
        answers += count
        now = time.monotonic()
        if live or done == batches or now - told > PLAIN_PROGRESS_SECONDS:
            told = now
            pace = answers / max(now - started, 1e-9)
            text = f"{done}/{batches} batches, {answers:,} answers sampled, {pace:.1f} a second"
            print(text, end="\r" if live else "\n", file=sys.stderr, flush=True)
    if live:
        print(file=sys.stderr)
    return answers


def write_report(folder: Path, problems: Sequence[Answers], title: str) -> str:
    """``summary.json``, ``summary.md`` and ``pass_at_k.png``; the table for a terminal."""
    table = summary_table(problems)
    write_text_atomically(folder / "summary.json", json.dumps(summary(problems), indent=2) + "\n")
    write_text_atomically(folder / "summary.md", f"# {title}\n\n{table.title}\n\n{as_markdown(table)}")
    plot_pass_at_k({title: problems}, title, folder / "pass_at_k.png")
    return as_text(table)


def read_run(folder: Path) -> list[Answers]:
    """The answers of a finished evaluation.

    Raises:
        InputError: there are none.
    """
    files = sorted((folder / "samples").glob("*.jsonl"))
    if not files:
        raise InputError(f"{folder}: no samples in it; give a folder that `verl-aer evaluate` has written")
    settings = read_json(folder / "settings.json")
    if len(files) != settings["batches"]:
        raise InputError(
            f"{folder}: {len(files)} of {settings['batches']} batches are there; "
            "the same `verl-aer evaluate` resumes it"
        )
    store = SampleStore(folder, settings)
    return gather(store.samples())
