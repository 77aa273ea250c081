"""Schemas of the files between stages, with validated reading and whole-or-nothing writing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs.errors import UserError
from configs.records import Answer, CorpusView, Document, Overlay, Question

_ids = pa.list_(pa.int64())
_strings = pa.list_(pa.string())
UNAVAILABLE = b"unavailable"  # key of a corpus's metadata
_note = pa.struct([("key", pa.string()), ("value", pa.string()), ("doc_id", pa.int64())])

SCHEMAS: dict[str, pa.Schema] = {
    # documentation prose, one row a source file; the splits are two files (tasks.sources)
    "prose": pa.schema([("source", pa.string()), ("sentences", _strings)]),
    "corpus": pa.schema([("doc_id", pa.int64()), ("text", pa.string()), ("num_tokens", pa.int32())]),
    "overlays": pa.schema(
        [("overlay_id", pa.string()), ("doc_id", pa.int64()), ("text", pa.string()), ("num_tokens", pa.int32())]
    ),
    "questions": pa.schema(
        [
            ("question_id", pa.string()),
            ("text", pa.string()),
            ("answer_prefix", pa.string()),
            ("max_new_tokens", pa.int32()),
            ("overlay_id", pa.string()),
        ]
    ),
    # gold never reaches a system; `oracle` is the declared exception
    "gold": pa.schema(
        [
            ("question_id", pa.string()),
            ("answers", _strings),
            ("gold_doc_ids", _ids),
            ("rejected", _strings),  # answers that make a prediction wrong: outdated values, the other of two
            ("group", pa.string()),  # questions that ask the same thing in other words
        ]
    ),
    # grades of gold documents, of tasks whose judges gave several: the others have no such file
    "grades": pa.schema([("question_id", pa.string()), ("doc_id", pa.int64()), ("grade", pa.float64())]),
    # training memories: the documents of one bank, shared by all samples of that bank
    "banks": pa.schema(
        [("bank_id", pa.int64()), ("doc_id", pa.int64()), ("text", pa.string()), ("num_tokens", pa.int32())]
    ),
    # `chain`: ids retrieved in each round; all of them together are the positives of the whole question.
    # `notes`: what a reader of the documents one by one would write down, or null where that was not made
    "samples": pa.schema(
        [
            ("sample_id", pa.int64()),
            ("bank_id", pa.int64()),
            ("task", pa.string()),
            ("question", pa.string()),
            ("answer_prefix", pa.string()),
            ("answer", pa.string()),
            ("chain", pa.list_(_ids)),
            ("notes", pa.list_(_note)),
        ]
    ),
    "scores": pa.schema(
        [
            ("system", pa.string()),
            ("task", pa.string()),
            ("context", pa.string()),
            ("seed", pa.int32()),
            ("question_id", pa.string()),
            ("metric", pa.string()),
            ("value", pa.float64()),
        ]
    ),
    "summary": pa.schema(
        [
            ("system", pa.string()),
            ("task", pa.string()),
            ("context", pa.string()),
            ("context_tokens", pa.int64()),
            ("metric", pa.string()),
            ("unit", pa.string()),
            ("n", pa.int32()),
            ("failures", pa.int32()),
            ("value", pa.float64()),
            ("low", pa.float64()),
            ("high", pa.float64()),
            ("status", pa.string()),
        ]
    ),
}


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
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path | str) -> Iterator[Path]:
    """Give a temporary directory beside ``path`` that takes its place only when the block ends well.

    Raises:
        UserError: there is something at ``path`` already, other than an empty directory.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists already; name another directory or delete it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_table(name: str, rows: Iterable[dict[str, Any]], path: Path | str) -> None:
    """Write rows under the schema called ``name``; the file appears whole or not at all."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMAS[name])
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_arrow(name: str, path: Path | str, columns: list[str] | None = None) -> pa.Table:
    """Read and validate a table, or some of its columns.

    Raises:
        UserError: the file is missing, not Parquet, or has other columns than the schema ``name``.
    """
    try:
        schema = pq.read_schema(path)
        table = pq.read_table(path, columns=columns) if schema.equals(SCHEMAS[name]) else None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the workflow stage that makes it") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); delete it and run the same command again") from None
    if table is None:
        expected = ", ".join(f"{field.name}: {field.type}" for field in SCHEMAS[name])
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise UserError(f"{path}: not a {name} table: expected columns [{expected}], found [{found}]")
    return table


def read_table(name: str, path: Path | str) -> list[dict[str, Any]]:
    """Rows of a validated table (:func:`read_arrow`) as dictionaries."""
    return read_arrow(name, path).to_pylist()


class Corpus(Sequence[Document]):
    """Documents of a corpus in file order, as columns in memory: a document becomes an object when it is asked for."""

    def __init__(self, table: pa.Table):
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, place: int) -> Document: ...

    @overload
    def __getitem__(self, place: slice) -> Corpus: ...

    def __getitem__(self, place: int | slice) -> Document | Corpus:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                raise ValueError("a corpus is sliced without a step")
            return Corpus(self.table.slice(start, max(0, stop - start)))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return Document(*(column[place % len(self)].as_py() for column in self.table.columns))

    def __iter__(self) -> Iterator[Document]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from map(Document, *(column.to_pylist() for column in batch.columns))

    @property
    def num_tokens(self) -> int:
        """Tokens of all its documents."""
        return pc.sum(self.table["num_tokens"]).as_py() or 0


def read_corpus(path: Path | str, num_documents: int | None = None) -> Corpus:
    """The first ``num_documents`` documents of a corpus (all by default)."""
    corpus = Corpus(read_arrow("corpus", path).slice(0, num_documents))
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
    """The view of one prepared cell directory (``_data/{task}/{context}``) over an already read corpus."""
    cell = Path(cell)
    added: dict[str, list[Document]] = {}
    for row in read_table("overlays", cell / "overlays.parquet"):
        added.setdefault(row.pop("overlay_id"), []).append(Document(**row))
    base_documents = read_json(cell / "view.json")["base_documents"]
    overlays = {name: Overlay(name, tuple(documents)) for name, documents in added.items()}
    return CorpusView(corpus[:base_documents], overlays)


def write_json(value: Any, path: Path | str) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a missing or broken one is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the workflow stage that makes it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run the same command again") from None


def write_predictions(answers: Iterable[Answer], path: Path | str) -> None:
    """Write predictions.jsonl, whole or not at all, without the prompts."""
    with whole_file(path) as temporary, open(temporary, "w") as lines:
        for answer in answers:
            row = asdict(answer)
            row.pop("prompt")  # a sample of them is kept apart (baselines.audit)
            lines.write(json.dumps(row) + "\n")


def read_predictions(path: Path | str) -> list[Answer]:
    """Read predictions.jsonl."""
    try:
        return [Answer(**json.loads(line)) for line in Path(path).read_text().splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the workflow stage that makes it") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a predictions file ({error}); delete it and run the same command again") from None
