"""Accuracy history and shortest correct response of each question, across training steps.

    Acc_h(x) <- (1 - eta) * Acc_h(x) + eta * Acc(x),   eta = ema_up if Acc_h(x) < Acc(x) else ema_down
    L_x      <- min(L_x, shortest correct response of the step)

Acc(x) is the mean correctness of all rollouts of x in the step. Acc_h(x) starts at the first Acc(x). The rule is
CEEH's (arXiv 2602.22642); the start of Acc_h is our interpretation. A stable id identifies a question, because veRL
draws a new ``uid`` in each step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from verl_aer._settings import Settings
from verl_aer.errors import InputError
from verl_aer.rollouts.groups import Groups


class Question(NamedTuple):
    """One question: Acc_h in [0, 1], L_x in tokens (None if never solved), and the last step that contained it."""

    accuracy: Annotated[float, Field(ge=0, le=1)]
    shortest: int | None
    step: int


class Observation(NamedTuple):
    """One group of rollouts of a question.

    accuracy: in [0, 1]. size: number of rollouts. shortest: tokens of the shortest correct one, None if none is.
    """

    question: str
    accuracy: float
    size: int
    shortest: int | None


class QuestionMemoryConfig(Settings):
    """Settings of the question memory."""

    question_key: str = "question_id"
    """Key of a stable id in the data set's ``extra_info``; rows without it are identified by data source and prompt."""
    max_questions: int = Field(default=100_000, ge=1)
    """Maximum number of questions in memory; the least recently seen ones are dropped first."""
    ema_up: float = Field(default=0.2, gt=0, le=1)
    """Weight of a new accuracy in Acc_h if it is above Acc_h."""
    ema_down: float = Field(default=0.05, gt=0, le=1)
    """Weight of a new accuracy in Acc_h otherwise."""


@dataclass(frozen=True)
class QuestionMemory:
    """The questions seen so far; immutable."""

    questions: Mapping[str, Question] = field(default_factory=dict)

    @property
    def mean_accuracy(self) -> float | None:
        """Mean of Acc_h over all questions in memory; None if there are none."""
        if not self.questions:
            return None
        return sum(question.accuracy for question in self.questions.values()) / len(self.questions)

    def after(self, observations: Sequence[Observation], step: int, config: QuestionMemoryConfig) -> QuestionMemory:
        """Return the memory after a step's groups; several groups of one question count as one group.

        >>> config = QuestionMemoryConfig(ema_up=0.5, ema_down=0.1)
        >>> memory = QuestionMemory().after([Observation("x", 0.5, 4, shortest=9)], step=1, config=config)
        >>> memory.after([Observation("x", 1.0, 4, 7), Observation("x", 0.5, 4, 8)], 2, config).questions["x"]
        Question(accuracy=0.625, shortest=7, step=2)
        """
        questions = dict(self.questions)
        for observed in _merged(observations):
            known = questions.get(observed.question)
            accuracy = observed.accuracy if known is None else _moved(known.accuracy, observed.accuracy, config)
            lengths = [length for length in (known and known.shortest, observed.shortest) if length is not None]
            questions[observed.question] = Question(accuracy, min(lengths, default=None), step)
        return QuestionMemory(_newest(questions, config.max_questions))


def remember(
    memory: QuestionMemory,
    groups: Groups,
    questions: Sequence[str],
    shortest: np.ndarray,
    step: int,
    config: QuestionMemoryConfig,
) -> tuple[QuestionMemory, Groups]:
    """Return the memory after a step, and the step's groups with the history of their questions.

    The groups get L_x from before the step, or from the step for a question that was never solved before.

    Args:
        questions: P ids.
        shortest: ``(P,)`` tokens of each group's shortest correct response, NaN if none is correct.
        step: the global step, counted from 1.
    """
    columns = zip(questions, groups.accuracy.tolist(), groups.size.tolist(), shortest.tolist(), strict=True)
    after = memory.after(
        [Observation(name, g, size, None if np.isnan(length) else int(length)) for name, g, size, length in columns],
        step,
        config,
    )

    def known_shortest(name: str) -> int | None:
        before = memory.questions.get(name)
        return before.shortest if before is not None and before.shortest is not None else after.questions[name].shortest

    lengths = [known_shortest(name) for name in questions]
    return after, replace(
        groups,
        history=np.array([after.questions[name].accuracy for name in questions]),
        history_mean=after.mean_accuracy,
        shortest=np.array([np.nan if length is None else float(length) for length in lengths]),
    )


def question_id(extra_info: Any, data_source: Any, prompt: Any, key: str) -> str:
    """Return a stable id of a data set's row: ``extra_info[key]``, else a digest of its source and prompt.

    Images enter the digest with their pixels. Raises InputError if the prompt contains an object of an unknown type.

    >>> question_id({"question_id": 17}, "math", [{"role": "user", "content": "1 + 1?"}], key="question_id")
    '17'
    >>> question_id(None, "math", [{"role": "user", "content": "1 + 1?"}], key="question_id")
    'b9b1ebbf7815714e9ebfb37f9c21897c'
    """
    own = extra_info.get(key) if isinstance(extra_info, Mapping) else None
    if own is not None:
        return str(own)
    try:
        text = json.dumps([data_source, prompt], sort_keys=True, default=_content)
    except TypeError as error:
        raise InputError(
            f"a question has no {key!r} in the data set's extra_info, and its prompt has no stable digest ({error}). "
            f"Add extra_info.{key} to every row, or set entropy.question_memory.question_key to another key of "
            "extra_info."
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _content(value: Any) -> Any:
    """Convert an object that JSON does not know to its content, which is the same in each process and for each copy."""
    if isinstance(value, bytes | bytearray):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return value.tolist()
    if isinstance(value, np.ndarray):
        return {"array": [value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()]}
    if hasattr(value, "mode") and hasattr(value, "getpalette"):
        # An image of PIL, which need not be installed.
        pixels = hashlib.sha256(value.tobytes()).hexdigest()
        return {"image": [value.mode, value.size, value.getpalette(), pixels]}
    raise TypeError(f"it holds a {type(value).__name__}")


def _merged(observations: Sequence[Observation]) -> list[Observation]:
    groups: dict[str, list[Observation]] = {}
    for observation in observations:
        groups.setdefault(observation.question, []).append(observation)
    return [_as_one(question, groups[question]) for question in sorted(groups)]


def _as_one(question: str, groups: list[Observation]) -> Observation:
    size = sum(group.size for group in groups)
    solved = sum(group.accuracy * group.size for group in groups)
    lengths = [group.shortest for group in groups if group.shortest is not None]
    return Observation(question, solved / size, size, min(lengths, default=None))


def _moved(accuracy: float, observed: float, config: QuestionMemoryConfig) -> float:
    eta = config.ema_up if accuracy < observed else config.ema_down
    return (1 - eta) * accuracy + eta * observed


def _newest(questions: dict[str, Question], max_questions: int) -> dict[str, Question]:
    if len(questions) <= max_questions:
        return questions
    # Equal steps are ordered by id, so that the dropped questions do not depend on the order of the rows.
    newest = sorted(questions, key=lambda name: (-questions[name].step, name))[:max_questions]
    return {name: questions[name] for name in newest}
