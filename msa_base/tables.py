"""Schemas of the files between stages, with validated reading and whole-or-nothing writing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from msa_base.errors import UserError, is_out_of_memory
from msa_base.json_lines import unique_keys
from msa_base.records import Answer, CorpusView, Document, Overlay, Question

MISSING = "no such file; run the workflow stage that makes it"
AGAIN = "delete it and run the same command again"
UNAVAILABLE = b"unavailable"  # key of a corpus's metadata

TEXT, INT, LONG, FLOAT = pa.string(), pa.int32(), pa.int64(), pa.float64()
TEXTS, LONGS = pa.list_(TEXT), pa.list_(LONG)
NOTES = pa.list_(pa.struct({"key": TEXT, "value": TEXT, "doc_id": LONG}))
_DOCUMENT = {"doc_id": LONG, "text": TEXT, "num_tokens": INT}
_CELL = {"system": TEXT, "task": TEXT, "context": TEXT}
_COLUMNS = {
    # documentation prose, one row a source file; the splits are two files (tasks.stages.sources)
    "prose": {"source": TEXT, "sentences": TEXTS},
    "corpus": _DOCUMENT,
    "overlays": {"overlay_id": TEXT, **_DOCUMENT},
    "questions": {"question_id": TEXT, "text": TEXT, "answer_prefix": TEXT, "max_new_tokens": INT, "overlay_id": TEXT},
    # gold never reaches a system; `oracle` is the declared exception. `rejected`: answers that make a prediction wrong
    # (outdated values, the other of two). `group`: questions that ask the same thing in other words
    "gold": {"question_id": TEXT, "answers": TEXTS, "gold_doc_ids": LONGS, "rejected": TEXTS, "group": TEXT},
    # grades of gold documents, of tasks whose judges gave several: the others have no such file
    "grades": {"question_id": TEXT, "doc_id": LONG, "grade": FLOAT},
    # training memories: the documents of one bank, shared by all samples of that bank
    "banks": {"bank_id": LONG, **_DOCUMENT},
    # `chain`: ids retrieved in each round; all of them together are the positives of the whole question.
    # `notes`: what a reader of the documents one by one would write down, or null where that was not made
    "samples": {
        "sample_id": LONG,
        "bank_id": LONG,
        "task": TEXT,
        "question": TEXT,
        "answer_prefix": TEXT,
        "answer": TEXT,
        "chain": pa.list_(LONGS),
        "notes": NOTES,
    },
    "scores": {**_CELL, "seed": INT, "question_id": TEXT, "metric": TEXT, "value": FLOAT},
    "summary": {
        **_CELL,
        "context_tokens": LONG,
        "metric": TEXT,
        "unit": TEXT,
        "n": INT,
        "failures": INT,
        "value": FLOAT,
        "low": FLOAT,
        "high": FLOAT,
        "status": TEXT,
    },
}
SCHEMAS = {name: pa.schema(columns) for name, columns in _COLUMNS.items()}
# columns where null says "there is none"; elsewhere it is a fault of the file
_MAY_BE_NULL = {
    "questions": ("overlay_id",),
    "gold": ("rejected", "group"),
    "samples": ("notes",),
    "scores": ("value",),
    "summary": ("context_tokens", "unit", "n", "failures", "value", "low", "high"),
}
_FROM_ZERO = ("doc_id", "num_tokens")


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place only when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path | str) -> Iterator[Path]:
    """Give a temporary directory beside ``path`` that takes its place only when the block ends well.

    Raises:
        UserError: there is something at ``path`` already, other than an empty directory, a link that leads nowhere too.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise UserError(f"{path}: exists already; name another directory or delete it")
    with whole_file(path) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def _reading(path: Path | str, kind: str, mend: str = AGAIN) -> Iterator[None]:
    """Make a missing file, and one that holds something else, a UserError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: {MISSING}") from None
    except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
        if is_out_of_memory(error):
            raise  # it says nothing about the file
        raise UserError(f"{path}: not {kind} ({error}); {mend}") from None


def write_table(name: str, rows: Iterable[dict[str, Any]], path: Path | str) -> None:
    """Write rows under the schema called ``name``; the file appears whole or not at all."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMAS[name])
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_arrow(name: str, path: Path | str, columns: list[str] | None = None, mend: str = AGAIN) -> pa.Table:
    """Read and validate a table, or some of its columns; ``mend`` is what to do where it is none.

    Columns that say the same in another way (large strings, wider or unsigned numbers, never null) are taken.

    Raises:
        UserError: the file is missing, not Parquet, has other columns than the schema ``name``, a null or a negative
            number where none may be, or text that is not UTF-8.
    """
    wanted = SCHEMAS[name]
    with _reading(path, "a readable Parquet file", mend):
        found = pq.read_schema(path)
        alike = found.names == wanted.names and all(map(_alike, found.types, wanted.types))
        if alike:
            with pq.ParquetFile(path) as file:  # one thread: where no other can be started, Arrow waits for ever
                table = file.read(columns=columns, use_threads=False)
            table.validate(full=True)  # of a foreign file its text may be no UTF-8
            table = table.cast(pa.schema([wanted.field(column) for column in table.column_names]))
    if not alike:
        said = (", ".join(f"{item.name}: {item.type}" for item in each) for each in (wanted, found))
        raise UserError("{}: not a {} table: expected columns [{}], found [{}]; {}".format(path, name, *said, mend))
    for column in table.column_names:
        if fault := _fault(table[column], column, nulls=column in _MAY_BE_NULL.get(name, ())):
            raise UserError(f"{path}, {fault}")
    return table


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column can be read as one of the wanted type without another meaning."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_list(wanted):
        lists = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return lists and _alike(found.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    return found.equals(wanted) or (pa.types.is_integer(wanted) and pa.types.is_integer(found))


def _fault(column: pa.ChunkedArray, name: str, nulls: bool) -> str | None:
    """The first row of a column that may not be, with its mend."""
    parts = column
    while pa.types.is_list(parts.type):
        parts = pc.list_flatten(parts)
    if column.null_count and not nulls:
        row, wrong = pc.index(pc.is_null(column), True).as_py(), "is null"
    elif parts is not column and parts.null_count:
        return f"key '{name}' holds a null in a list; give it a value or leave it out"
    elif name in _FROM_ZERO and (pc.min(column).as_py() or 0) < 0:
        row, wrong = pc.index(pc.less(column, 0), True).as_py(), "is negative"
    else:
        return None
    return f"row {row + 1}: key '{name}' {wrong}; give it a value or leave the row out"


def read_table(name: str, path: Path | str) -> list[dict[str, Any]]:
    """Rows of a validated table (:func:`read_arrow`) as dictionaries."""
    return read_arrow(name, path).to_pylist()


class Corpus(Sequence[Document]):
    """Documents of a corpus in file order, as columns in memory: a document becomes an object when it is asked for."""

    def __init__(self, table: pa.Table):
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, place: int | slice) -> Document | Corpus:
        rows = range(len(self))[place]
        if isinstance(rows, int):
            return Document(*(column[rows].as_py() for column in self.table.columns))
        if rows.step != 1:
            raise ValueError("a corpus is sliced without a step")
        return Corpus(self.table.slice(rows.start, len(rows)))

    def __iter__(self) -> Iterator[Document]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from map(Document, *(column.to_pylist() for column in batch.columns))

    @property
    def num_tokens(self) -> int:
        return pc.sum(self.table["num_tokens"]).as_py() or 0


def read_corpus(path: Path | str, num_documents: int | None = None, mend: str = AGAIN) -> Corpus:
    """The first ``num_documents`` documents of a corpus (all by default); ``mend`` as in :func:`read_arrow`."""
    corpus = Corpus(read_arrow("corpus", path, mend=mend).slice(0, num_documents))
    pa.default_memory_pool().release_unused()  # reading takes three times what stays
    return corpus


def unavailable(path: Path | str) -> str | None:
    """Why a corpus was written empty, on a machine without its data; None of any other."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        return None  # a reader of the corpus itself says what is wrong with it
    reason = metadata.get(UNAVAILABLE)
    return reason.decode() if reason else None


def write_unavailable(reason: str, path: Path | str) -> None:
    """Write an empty corpus that says why it is empty."""
    schema = SCHEMAS["corpus"].with_metadata({UNAVAILABLE: reason})
    with whole_file(path) as temporary:
        pq.write_table(schema.empty_table(), temporary)


def read_questions(path: Path | str) -> list[Question]:
    """Questions in file order."""
    return [Question(**row) for row in read_table("questions", path)]


def read_view(cell: Path | str, corpus: Sequence[Document]) -> CorpusView:
    """The view of one prepared cell directory (``_data/{task}/{context}``) over the documents of its tail's prefix."""
    cell = Path(cell)
    added: dict[str, list[Document]] = {}
    for row in read_table("overlays", cell / "overlays.parquet"):
        added.setdefault(row.pop("overlay_id"), []).append(Document(**row))
    overlays = {name: Overlay(name, tuple(documents)) for name, documents in added.items()}
    return CorpusView(corpus, overlays)


def write_json(value: Any, path: Path | str) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a missing or broken one is a UserError that names it."""
    with _reading(path, "valid JSON"):
        return json.loads(Path(path).read_text(), object_pairs_hook=unique_keys)


def read_text(path: Path | str) -> str:
    """Read a text file; a missing one, or one that is not UTF-8, is a UserError that names it."""
    with _reading(path, "a text in UTF-8"):
        return Path(path).read_text(encoding="utf-8")


def write_lines(rows: Iterable[Any], path: Path | str) -> None:
    """Write a file of JSON lines, whole or not at all."""
    with whole_file(path) as temporary, open(temporary, "w") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def write_predictions(answers: Iterable[Answer], path: Path | str) -> None:
    """Write predictions.jsonl without the prompts, of which a sample is kept apart (baselines.drivers.audit)."""
    rows = map(asdict, answers)
    write_lines(({name: value for name, value in row.items() if name != "prompt"} for row in rows), path)


def read_predictions(path: Path | str) -> list[Answer]:
    """Read predictions.jsonl; a missing or broken one is a UserError that names it."""
    with _reading(path, "a predictions file"):
        return [Answer(**json.loads(line)) for line in Path(path).read_text().split("\n") if line]
