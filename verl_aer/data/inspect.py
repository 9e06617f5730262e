"""Check a parquet file row by row for training or evaluation with veRL, and summarize its contents.

A row is good if veRL can make a prompt of it and a rule can check the answer:

    prompt          a list of messages, each with the texts `role` and `content`; the last one is the user's
    data_source     a text
    reward_model    with the text `ground_truth`
    extra_info      with a `question_id` (a warning if missing: questions are then identified by their text)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_aer._files import replaced_atomically
from verl_aer._tables import Table
from verl_aer.data.dataset import answer_kind
from verl_aer.data.prepare import quantiles
from verl_aer.data.reading import open_parquet
from verl_aer.data.text import digest_of, key_of
from verl_aer.errors import InputError

COLUMNS = ("data_source", "prompt", "reward_model")
"""Columns that veRL needs for training. extra_info is optional."""
ROWS_SHOWN = 10
BATCH_ROWS = 8192


@dataclass
class Inspection:
    """Contents of a file. bad: (row number, counted from 1, and reason)."""

    file: str
    rows: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    prompt_characters: Counter[int] = field(default_factory=Counter)
    without_id: int = 0
    repeated: int = 0
    first: dict[str, Any] | None = None

    def tables(self) -> list[Table]:
        """Make the tables for a terminal."""
        rows = [["rows", f"{self.rows:,}"], ["bad", f"{len(self.bad):,}"]]
        rows += [["repeated prompts", f"{self.repeated:,}"]] if self.repeated else []
        rows += [["without extra_info.question_id", f"{self.without_id:,}"]] if self.without_id else []
        tables = [Table(self.file, ["", "rows"], rows)]
        for title, counter in (("data sources", self.sources), ("answers", self.answers)):
            tables.append(Table(title, ["", "rows"], [[name, f"{count:,}"] for name, count in counter.most_common()]))
        lengths = quantiles(self.prompt_characters)
        if lengths:
            values = [f"{value:,}" for value in lengths.values()]
            tables.append(Table("prompt, characters", list(lengths), [values]))
        if self.bad:
            shown = [[str(number), reason] for number, reason in self.bad[:ROWS_SHOWN]]
            tables.append(Table(f"the first of {len(self.bad):,} bad rows", ["row", "reason"], shown))
        return tables


def inspect(file: Path, bad_rows: Path | None = None) -> Inspection:
    """Check every row, and write the bad rows to the JSON lines file ``bad_rows``.

    Raises:
        InputError: the file cannot be read, or lacks a column.
    """
    found, seen = Inspection(str(file)), set()
    bad: list[dict[str, Any]] = []
    for number, row in enumerate(_rows(file), start=1):
        found.rows += 1
        reason = row_error(row)
        if reason is not None:
            found.bad.append((number, reason))
            bad.append({"row": number, "reason": reason, "content": row})
            continue
        found.first = found.first or row
        content = row["prompt"][-1]["content"]
        digest = digest_of(key_of(content))
        found.repeated += digest in seen
        seen.add(digest)
        found.sources[row["data_source"]] += 1
        found.answers[answer_kind(row["reward_model"]["ground_truth"])] += 1
        found.prompt_characters[sum(len(message["content"]) for message in row["prompt"])] += 1
        found.without_id += not (row.get("extra_info") or {}).get("question_id")
    if bad_rows is not None and bad:
        with replaced_atomically(bad_rows) as temporary, temporary.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, default=str) + "\n" for row in bad)
    return found


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    source = open_parquet(file)
    missing = [name for name in COLUMNS if name not in source.schema_arrow.names]
    if missing:
        raise InputError(f"{file}: lacks {', '.join(missing)}; prepare it with a script of data_prep")
    for batch in source.iter_batches(BATCH_ROWS):
        yield from batch.to_pylist()


def row_error(row: dict[str, Any]) -> str | None:
    """Return why veRL cannot train on a row; None for a good row.

    >>> row_error({"data_source": "m", "prompt": [], "reward_model": {"ground_truth": "1"}})
    'prompt: not a list of messages'
    """
    prompt, reward = row.get("prompt"), row.get("reward_model")
    if not isinstance(prompt, list) or not prompt:
        return "prompt: not a list of messages"
    for message in prompt:
        if not isinstance(message, dict) or not _is_text(message.get("role")) or not _is_text(message.get("content")):
            return "prompt: a message without role or content"
    if prompt[-1]["role"] != "user":
        return f"prompt: the last message is from {prompt[-1]['role']!r}, not from the user"
    if not _is_text(row.get("data_source")):
        return "data_source: missing"
    if not isinstance(reward, dict) or not _is_text(reward.get("ground_truth")):
        return "reward_model.ground_truth: missing, or not a text"
    return None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
