"""Rows of a set's files: JSON, JSON lines and Parquet, and what stands in a row as a list or in columns."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from msa_base.json_lines import BOM, parse_json, read_json_lines


def read_json_rows(path: Path) -> list[Any]:
    """A JSON list, or JSON lines, gzipped or not."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    if raw.removeprefix(BOM).lstrip()[:1] == b"[":
        return parse_json(raw)
    return [value for _, value in read_json_lines(path)]


def read_parquet_rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Rows of Parquet files in order, streamed."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(256):
                yield from batch.to_pylist()


def read_rows(path: Path) -> Iterable[dict[str, Any]]:
    """Rows of a file by its ending: Parquet, or JSON."""
    return read_parquet_rows([path]) if path.suffix == ".parquet" else read_json_rows(path)


def rows_of(table: Any, *columns: str) -> list[tuple]:
    """What stands in one row for another set's rows: a list of rows, a column each (as the hub stores it), or its JSON.

    A row is a tuple of its columns, and of whatever else a list has.
    """
    table = parse_json(table) if isinstance(table, str) else table
    if isinstance(table, Mapping):
        return list(zip(*(table[column] for column in columns), strict=True))
    return [tuple(row[name] for name in columns) if isinstance(row, Mapping) else tuple(row) for row in table]
