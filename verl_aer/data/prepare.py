"""Prepare a source as a parquet file in veRL's schema, row by row, and report what happened to every row.

    row of the source → question and answer → repeated? → in an evaluation set? → row of veRL's schema

Memory grows with the number of distinct questions (12 bytes each), not with the number of rows. The file, its report
and the rows that were left out appear together, when all of them are complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_aer._files import replaced_atomically
from verl_aer._progress import ProgressDisplay
from verl_aer._tables import Table, as_text
from verl_aer.data.dataset import BOXED, BadRow, DataSet, MathProblem, answer_kind
from verl_aer.data.reading import Block, open_parquet, read_blocks
from verl_aer.data.text import EvalQuestionIndex, digest_of, key_of
from verl_aer.errors import InputError, VerlAerError

OK, BAD_INPUT = 0, 2
ROW_GROUP_ROWS = 4096
LONGEST_ANSWER = 1000
"""Characters. A longer answer is a solution, which no rule can check."""
EXCERPT = 200
"""Characters of a question in the file of left-out rows."""

# Reasons for leaving a row out.
REPEATED = "the same question and answer as an earlier row"
CONTRADICTS = "the same question as an earlier row, with another answer"
HELD_OUT = "a question of an evaluation set"
UNREADABLE = "answer: the math reward cannot read it"
OVERLAPS = "shares most of its words with a question of an evaluation set"


@dataclass
class PreparationSettings:
    """instruction: text after every question. overlap, ngram: a training question is left out if at least the share
    ``overlap`` of its n-grams, each of ``ngram`` words, occurs in the evaluation sets."""

    instruction: str = BOXED
    overlap: float = 0.5
    ngram: int = 10

    def problems(self) -> list[str]:
        found = [] if 0 < self.overlap <= 1 else ["--overlap must be above 0 and at most 1"]
        return found + ([] if self.ngram >= 1 else ["--ngram must be at least 1"])


@dataclass
class Report:
    """Counts of the rows that were read, left out and written."""

    data_set: str
    rows_in: int = 0
    rows_out: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    question_characters: Counter[int] = field(default_factory=Counter)
    prompt_tokens: Counter[int] = field(default_factory=Counter)
    content_sha256: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Convert to JSON types, lengths to quantiles."""
        plain: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("left_out", "bad", "answers"):
            plain[name] = dict(sorted(plain[name].items()))
        for name in ("question_characters", "prompt_tokens"):
            plain[name] = quantiles(plain[name])
        return plain

    def tables(self) -> list[Table]:
        """Make the tables for a terminal."""
        rows = [["rows read", f"{self.rows_in:,}"]]
        rows += [[f"left out: {reason}", f"{count:,}"] for reason, count in self.left_out.most_common()]
        rows += [[f"bad: {reason}", f"{count:,}"] for reason, count in self.bad.most_common()]
        rows += [["rows written", f"{self.rows_out:,}"], ["content (SHA-256)", self.content_sha256]]
        answers = [[kind, f"{count:,}"] for kind, count in self.answers.most_common()]
        tables = [Table(self.data_set, ["", "rows"], rows), Table("answers", ["kind", "rows"], answers)]
        lengths = [
            [name, *(f"{value:,}" for value in quantiles(counter).values())]
            for name, counter in (
                ("question, characters", self.question_characters),
                ("prompt, tokens", self.prompt_tokens),
            )
            if counter
        ]
        return [*tables, Table("lengths", ["", *QUANTILES], lengths)] if lengths else tables


QUANTILES = {"least": 0.0, "median": 0.5, "95 %": 0.95, "99 %": 0.99, "most": 1.0}


def quantiles(lengths: Counter[int]) -> dict[str, int]:
    """Find for each share of the rows the smallest length that this share does not exceed.

    >>> quantiles(Counter({3: 98, 10: 1, 50: 1}))
    {'least': 3, 'median': 3, '95 %': 3, '99 %': 10, 'most': 50}
    >>> quantiles(Counter())
    {}
    """
    total, found = sum(lengths.values()), {}
    for name, share in QUANTILES.items():
        reached = 0
        for length in sorted(lengths):
            reached += lengths[length]
            if reached >= share * total:
                found[name] = length
                break
    return found


@dataclass(frozen=True)
class LeftOut:
    """A row that was left out."""

    file: str
    row: int
    reason: str
    question: str = ""


def prepared_rows(
    dataset: DataSet,
    blocks: Iterable[Block],
    eval_questions: EvalQuestionIndex,
    settings: PreparationSettings,
    report: Report,
    leave_out: Callable[[LeftOut], None],
    answer_error: Callable[[str], str | None] | None,
) -> Iterator[dict[str, Any]]:
    """Convert the good rows to veRL's schema; count all others, and list them except repetitions."""
    answers: dict[bytes, bytes] = {}
    for block in blocks:
        report.rows_in += len(block.rows) + block.repeated
        report.left_out.update({REPEATED: block.repeated} if block.repeated else {})
        for number, row in block.rows:
            try:
                problem = _problem(dataset, row)
            except BadRow as error:
                report.bad[_kind_of(str(error))] += 1
                leave_out(LeftOut(block.file, number, str(error)))
                continue
            key = digest_of(key_of(problem.question))
            reason = _reason_against(problem, key, answers, eval_questions, settings)
            error = answer_error(problem.answer) if answer_error is not None and reason is None else None
            if error is not None:
                report.bad[UNREADABLE] += 1
                leave_out(LeftOut(block.file, number, f"{UNREADABLE}: {problem.answer!r:.60}: {error}"))
                continue
            if reason is None:
                answers[key] = digest_of(key_of(problem.answer))
                yield _row(dataset, problem, key, report.rows_out, settings)
                _count(report, problem)
                continue
            report.left_out[reason] += 1
            if reason != REPEATED:
                leave_out(LeftOut(block.file, number, reason, problem.question[:EXCERPT]))


def _problem(dataset: DataSet, row: dict[str, Any] | str) -> MathProblem:
    if isinstance(row, str):
        raise BadRow(row)
    problem = dataset.read(row)
    if len(problem.answer) > LONGEST_ANSWER:
        raise BadRow(f"answer: longer than {LONGEST_ANSWER} characters")
    return problem


def _kind_of(reason: str) -> str:
    """Remove the value from a reason, to count rows by reason."""
    return reason.split(": '")[0].split(": {")[0]


def _reason_against(
    problem: MathProblem,
    key: bytes,
    answers: dict[bytes, bytes],
    eval_questions: EvalQuestionIndex,
    settings: PreparationSettings,
) -> str | None:
    if key in answers:
        return REPEATED if answers[key] == digest_of(key_of(problem.answer)) else CONTRADICTS
    if eval_questions.has(problem.question):
        return HELD_OUT
    return OVERLAPS if eval_questions.overlap(problem.question) >= settings.overlap else None


def _row(
    dataset: DataSet, problem: MathProblem, key: bytes, index: int, settings: PreparationSettings
) -> dict[str, Any]:
    content = f"{problem.question}\n\n{settings.instruction}" if settings.instruction else problem.question
    return {
        "data_source": dataset.name,
        "prompt": [{"role": "user", "content": content}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {
            "split": dataset.split,
            "index": index,
            "question_id": f"{dataset.name}-{key.hex()}",
            "question": problem.question,
            **{name: problem.about.get(name) for name in dataset.about},
        },
    }


def _count(report: Report, problem: MathProblem) -> None:
    report.rows_out += 1
    report.answers[answer_kind(problem.answer)] += 1
    report.question_characters[len(problem.question)] += 1


def schema(dataset: DataSet) -> pa.Schema:
    """Make veRL's schema."""
    extra = {"split": pa.string(), "index": pa.int64(), "question_id": pa.string(), "question": pa.string()}
    extra |= dict.fromkeys(dataset.about, pa.string())
    return pa.schema(
        {
            "data_source": pa.string(),
            "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
            "ability": pa.string(),
            "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
            "extra_info": pa.struct(extra),
        }
    )


def write(
    dataset: DataSet, rows: Iterable[dict[str, Any]], out: Path, count_tokens: Callable | None, report: Report
) -> None:
    """Write the rows in groups. The hash covers the rows, so that it does not depend on pyarrow's version."""
    content = hashlib.sha256()
    with pq.ParquetWriter(out, schema(dataset)) as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            content.update(json.dumps(row, ensure_ascii=True, sort_keys=True).encode())
            if count_tokens is not None:
                report.prompt_tokens[count_tokens(row["prompt"])] += 1
            group.append(row)
            if len(group) == ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(group, schema(dataset)))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema(dataset)))
    report.content_sha256 = content.hexdigest()


def questions_of(files: Sequence[Path]) -> Iterator[str]:
    """Read the questions of files that these scripts have written.

    Raises:
        InputError: another file.
    """
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file; prepare the evaluation sets first")
        source = open_parquet(file)
        if "extra_info" not in source.schema_arrow.names:
            raise InputError(f"{file}: no column extra_info; give a file that a script of data_prep has written")
        for batch in source.iter_batches(columns=["extra_info"]):
            for info in batch.column(0).to_pylist():
                if not isinstance(info, dict) or not isinstance(info.get("question"), str):
                    raise InputError(f"{file}: a row without extra_info.question; prepare it again")
                yield info["question"]


def prepare(
    dataset: DataSet,
    out: Path,
    files: Sequence[Path] = (),
    against: Sequence[Path] = (),
    settings: PreparationSettings | None = None,
    strict: bool = False,
    count_tokens: Callable[[list[dict[str, str]]], int] | None = None,
    answer_error: Callable[[str], str | None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Report:
    """Prepare a data set. Its parquet file, ``.report.json`` and ``.left-out.jsonl`` appear together or not at all.

    Args:
        files: local copies of the source; empty: read from the hub.
        against: prepared evaluation sets, whose questions are left out.
        strict: raise an error if a row is bad.
        count_tokens: computes the length of a prompt.
        answer_error: returns why an answer cannot be compared, or None; a row with such an answer is bad.
        on_progress: called with the number of rows read so far.

    Raises:
        InputError: unreadable input, settings out of bounds, no rows left, or a bad row with ``strict``.
    """
    settings = settings or PreparationSettings()
    if settings.problems():
        raise InputError("; ".join(settings.problems()))
    eval_questions = EvalQuestionIndex(questions_of(against), settings.ngram)
    report = Report(dataset.name, settings={**asdict(settings), "against": [file.name for file in against]})
    with ExitStack() as stack:
        parquet = stack.enter_context(replaced_atomically(out))
        account = stack.enter_context(replaced_atomically(out.with_suffix(".report.json")))
        others = stack.enter_context(replaced_atomically(out.with_suffix(".left-out.jsonl")))
        with others.open("w", encoding="utf-8") as listed:
            first_bad: list[LeftOut] = []

            def leave_out(row: LeftOut) -> None:
                listed.write(json.dumps(asdict(row)) + "\n")
                if not row.question and len(first_bad) < 5:
                    first_bad.append(row)

            blocks = read_blocks(dataset, list(files))
            if on_progress is not None:
                blocks = _counted(blocks, on_progress)
            rows = prepared_rows(dataset, blocks, eval_questions, settings, report, leave_out, answer_error)
            write(dataset, rows, parquet, count_tokens, report)
        refusal = f"none of {report.rows_in} rows is left" if not report.rows_out else ""
        if strict and report.bad:
            refusal = f"{sum(report.bad.values())} bad rows, and --strict"
        if refusal:
            shown = "".join(f"\n  {row.file} row {row.row}: {row.reason}" for row in first_bad)
            raise InputError(f"{refusal}: nothing was written{shown}")
        account.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def run(dataset: DataSet, arguments: Sequence[str] | None = None) -> int:
    """Run a script. Returns 0, or 2 for bad usage or input."""
    args = _parser(dataset).parse_args(arguments)
    settings = PreparationSettings(args.instruction, args.overlap, args.ngram)
    try:
        with ProgressDisplay() as display:
            report = prepare(
                dataset,
                args.out,
                files=args.input,
                against=args.against,
                settings=settings,
                strict=args.strict,
                count_tokens=_token_counter(args.tokenizer) if args.tokenizer else None,
                answer_error=_math_answer_error if args.check_answers else None,
                on_progress=lambda rows: display.show(rows, f"{rows:,} rows read"),
            )
    except (VerlAerError, OSError) as error:
        print(f"{dataset.name}: {error}", file=sys.stderr)
        return BAD_INPUT
    print("\n".join(as_text(table) for table in report.tables()))
    print(f"written: {args.out}, and next to it the rows left out and this report")
    return OK


def _parser(dataset: DataSet) -> argparse.ArgumentParser:
    script = f"python -m data_prep.{dataset.name}"
    parser = argparse.ArgumentParser(
        prog=script,
        description=f"Prepare {dataset.hub} ({dataset.role}) as a parquet file in veRL's schema.",
        epilog=f"examples:\n  {script}\n  {script} --input copy.parquet --out data/{dataset.name}.parquet"
        + ("" if dataset.role == "evaluation" else f"\n  {script} --against data/aime24.parquet data/math500.parquet"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = PreparationSettings()
    parser.add_argument("--out", type=Path, default=Path("data") / f"{dataset.name}.parquet")
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="local .parquet, .jsonl or .csv (default: the hub)",
    )
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="FILE", help="prepared sets whose questions are left out"
    )
    parser.add_argument(
        "--overlap", type=float, default=defaults.overlap, help="share of common n-grams (default %(default)s)"
    )
    parser.add_argument("--ngram", type=int, default=defaults.ngram, help="words per n-gram (default %(default)s)")
    parser.add_argument(
        "--instruction", default=defaults.instruction, help="text after each question (default: %(default)r)"
    )
    parser.add_argument("--tokenizer", help="name or folder of a tokenizer, to count the prompts' tokens")
    parser.add_argument(
        "--check-answers", action="store_true", help="count rows whose answer the math reward cannot read as bad"
    )
    parser.add_argument("--strict", action="store_true", help="fail if a row is bad")
    return parser


def _math_answer_error(answer: str) -> str | None:
    # Imported here: it requires math-verify.
    from verl_aer.rewards.math_reward import check_ground_truth

    return check_ground_truth(answer)


def _token_counter(name: str) -> Callable[[list[dict[str, str]]], int]:
    # Imported here: the import takes seconds.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"--tokenizer {name}: {error}") from error

    def tokens(prompt: list[dict[str, str]]) -> int:
        if tokenizer.chat_template is None:
            return len(tokenizer(prompt[0]["content"])["input_ids"])
        return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))

    return tokens


def _counted(blocks: Iterable[Block], on_progress: Callable[[int], None]) -> Iterator[Block]:
    rows = 0
    for block in blocks:
        yield block
        rows += len(block.rows) + block.repeated
        on_progress(rows)
