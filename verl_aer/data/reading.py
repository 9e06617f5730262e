"""Read the rows of a hub data set or of local files in blocks.

Repeated rows of Arrow data are dropped before they become Python objects: DAPO-Math-17k has each problem a hundred
times.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from verl_aer.data.dataset import DataSet
from verl_aer.data.text import digest_of
from verl_aer.errors import InputError

BLOCK_ROWS = 131_072
LARGEST_CELL = 2**31 - 1
"""Maximum characters of a CSV cell. The csv module's default is 128 KiB."""


class Block(NamedTuple):
    """rows: (number in the file, counted from 1, and the row, or a text that says why it is bad). repeated: number of
    repeated rows that were dropped. file: name of the file or data set."""

    rows: list[tuple[int, dict[str, Any] | str]]
    repeated: int
    file: str


def read_blocks(dataset: DataSet, files: list[Path]) -> Iterator[Block]:
    """Read all rows of the local files, or of the hub's data set if there are no files.

    Raises:
        InputError: a missing file, an unknown file type, or an unreachable hub.
    """
    seen: set[bytes] = set()
    if not files:
        yield from _without_repeats(_from_hub(dataset), dataset.repeats, seen, dataset.hub)
    for file in files:
        yield from _from_file(file, dataset, seen)


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a parquet file.

    Raises:
        InputError: a missing file, or not a parquet file.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: not a parquet file ({error})") from None


def _from_file(file: Path, dataset: DataSet, seen: set[bytes]) -> Iterator[Block]:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    name = str(file)
    if file.suffix == ".parquet":
        source = open_parquet(file)
        columns = [column for column in dataset.columns if column in source.schema_arrow.names]
        yield from _without_repeats(source.iter_batches(BLOCK_ROWS, columns=columns), dataset.repeats, seen, name)
    elif file.suffix in (".jsonl", ".json", ".ndjson"):
        yield from _in_blocks(_json_rows(file), name)
    elif file.suffix == ".csv":
        yield from _in_blocks(_csv_rows(file), name)
    else:
        raise InputError(f"{file}: unknown file type; the name must end in .parquet, .jsonl, .json or .csv")


def _json_rows(file: Path) -> Iterator[dict[str, Any] | str]:
    """Read one JSON value per line, or one list of them."""
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        first = lines.read(1)
        lines.seek(0)
        if first == "[":
            try:
                values = json.load(lines)
            except json.JSONDecodeError as error:
                raise InputError(f"{file}: begins like a JSON list but is not one ({error})") from None
            yield from (value if isinstance(value, dict) else "not a JSON object" for value in values)
            return
        for line in lines:
            if line.strip():
                value: Any = None
                with suppress(json.JSONDecodeError):
                    value = json.loads(line)
                yield value if isinstance(value, dict) else "not a JSON object"


def _csv_rows(file: Path) -> Iterator[dict[str, Any] | str]:
    csv.field_size_limit(LARGEST_CELL)
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        for row in csv.DictReader(lines):
            # DictReader stores surplus cells under the key None, and None for missing cells.
            whole = None not in row and None not in row.values()
            yield dict(row) if whole else "number of cells differs from the header"


def _in_blocks(rows: Iterable[dict[str, Any] | str], name: str) -> Iterator[Block]:
    block: list[tuple[int, dict[str, Any] | str]] = []
    for numbered in enumerate(rows, start=1):
        block.append(numbered)
        if len(block) == BLOCK_ROWS:
            yield Block(block, 0, name)
            block = []
    yield Block(block, 0, name)


def _from_hub(dataset: DataSet) -> Iterator[pa.RecordBatch]:
    # Imported here: the import takes seconds, and local files do not need it.
    import datasets

    try:
        stream = datasets.load_dataset(dataset.hub, dataset.config, split=dataset.split, streaming=True)
        stream = stream.select_columns(list(dataset.columns))
        for table in stream.with_format("arrow").iter(batch_size=BLOCK_ROWS):
            yield from table.combine_chunks().to_batches()
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{dataset.hub}: cannot be read from the hub ({type(error).__name__}: {error}). "
            "Download it elsewhere, and pass its files with --input"
        ) from None


def _without_repeats(
    batches: Iterable[pa.RecordBatch], repeats: tuple[str, ...], seen: set[bytes], name: str
) -> Iterator[Block]:
    begin = 1
    for batch in batches:
        places = _first_occurrences(batch, repeats, seen)
        if places is None:
            places = np.arange(len(batch))
        rows = batch.take(pa.array(places)).to_pylist()
        numbered = [(begin + int(place), row) for place, row in zip(places, rows, strict=True)]
        yield Block(numbered, len(batch) - len(rows), name)
        begin += len(batch)


def _first_occurrences(batch: pa.RecordBatch, repeats: tuple[str, ...], seen: set[bytes]) -> np.ndarray | None:
    """Find the first rows of each kind, by the columns ``repeats``; None if these columns have unexpected types."""
    columns = [_column(batch, path) for path in repeats]
    if not columns or any(column is None for column in columns):
        return None
    names = [str(number) for number in range(len(columns))]
    table = pa.table([*columns, np.arange(len(batch))], names=[*names, "place"])
    firsts = table.group_by(names, use_threads=False).aggregate([("place", "min")])
    new = []
    for place, *texts in zip(*(firsts[name].to_pylist() for name in ("place_min", *names)), strict=True):
        digest = digest_of("\x1f".join("\0" if text is None else text for text in texts))
        if digest not in seen:
            seen.add(digest)
            new.append(place)
    return np.sort(np.array(new, dtype=np.int64))


def _column(batch: pa.RecordBatch, path: str) -> pa.Array | None:
    """Return a text column by its dotted path, such as ``prompt.0.content``; None if a row lacks it."""
    first, *rest = path.split(".")
    if first not in batch.schema.names:
        return None
    column = batch.column(first)
    for part in rest:
        if part.isdigit() and (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            shortest = pc.min(pc.list_value_length(column)).as_py()
            if column.null_count or shortest is None or shortest <= int(part):
                return None
            column = pc.list_element(column, int(part))
        elif pa.types.is_struct(column.type) and column.type.get_field_index(part) >= 0:
            column = pc.struct_field(column, part)
        else:
            return None
    return column if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) else None
