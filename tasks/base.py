"""What a task or corpus kind implements: one module with ``make_corpus``, ``prepare`` or both.

``kind`` in configs/tasks.yaml names the module: ``kind: ruler`` is tasks.ruler, ``kind: mypackage.mytask`` any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from configs.errors import UserError
from configs.records import Document, Question
from configs.tables import read_arrow, unavailable
from tasks.chunking import SHORT_ID_DOCUMENTS, SHORT_IDS, text_budget

OWN_MEMORY = "own"  # the context that is a set's own memory, whatever its size
DOCUMENT_TOKENS = 96  # default budget of a wrapped document: room for a needle of two UUIDs


class UnavailableData(Exception):
    """Data that this machine lacks: the message names the path and the command that would fetch it.

    A corpus without its data is written empty, with this reason; every cell over it becomes `unavailable_data`.
    """


@dataclass(frozen=True)
class CorpusRequest:
    """What ``make_corpus`` gets: the corpus entry's name and params, and how many tokens to fill."""

    name: str
    params: Mapping[str, Any]
    where: str  # for messages: file and entry
    tokenizer: Tokenizer
    prose: Path  # directory of the machine's prose
    num_tokens: int  # the largest context; the last document may pass it
    data: Path | None = None  # the profile's data directory


class Tail:
    """A corpus on disk: ids and cumulative tokens in memory, texts read on demand."""

    def __init__(self, path: Path | str) -> None:
        """Open a corpus.parquet.

        Raises:
            UserError: the file is missing or is no corpus.
            UnavailableData: it was written empty, because the machine lacks its data.
        """
        self.path = Path(path)
        if reason := unavailable(self.path):
            raise UnavailableData(reason)
        table = read_arrow("corpus", self.path, ["doc_id", "num_tokens"])
        self.doc_ids: np.ndarray = table["doc_id"].to_numpy()
        self.ends: np.ndarray = np.cumsum(table["num_tokens"].to_numpy(), dtype=np.int64)
        if not len(self.ends):
            raise UserError(f"{path}: holds no documents; delete it and run the same command again")

    @property
    def id_documents(self) -> int:
        """A number of documents that stands for the length of this tail's ids (:func:`tasks.chunking.id_range`)."""
        return SHORT_ID_DOCUMENTS if self.doc_ids.max() > SHORT_IDS[1] else 0

    def prefix(self, num_tokens: int) -> int:
        """The largest number of leading documents with at most ``num_tokens`` in all."""
        return int(np.searchsorted(self.ends, num_tokens, side="right"))

    def tokens(self, num_documents: int) -> int:
        """Tokens of the leading documents."""
        return int(self.ends[num_documents - 1]) if num_documents else 0

    def at(self, token: int) -> int:
        """Index of the document that holds a token position."""
        return int(np.searchsorted(self.ends, token, side="right"))

    def take(self, indices: set[int]) -> dict[int, Document]:
        """Documents by index; only the row groups that hold them are read."""
        found: dict[int, Document] = {}
        start = 0
        file = pq.ParquetFile(self.path)
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            wanted = sorted(index for index in indices if start <= index < end)
            if wanted:
                rows = file.read_row_group(group).take([index - start for index in wanted]).to_pylist()
                found.update(zip(wanted, (Document(**row) for row in rows), strict=True))
            start = end
        return found


@dataclass(frozen=True)
class TaskRequest:
    """What ``prepare`` gets: the task entry's name and params, its tail, and the contexts to prepare."""

    name: str
    params: Mapping[str, Any]
    where: str
    tokenizer: Tokenizer
    prose: Path
    corpus: str
    corpus_params: Mapping[str, Any]
    tail: Tail
    contexts: Mapping[str, int]  # name -> tokens
    questions: int
    data: Path | None = None

    @property
    def document_tokens(self) -> int:
        """The budget of the corpus's documents, which overlay documents keep too."""
        return int(self.corpus_params.get("document_tokens", DOCUMENT_TOKENS))

    @property
    def text_tokens(self) -> int:
        """The budget of a document's bare text."""
        return text_budget(self.tokenizer, self.document_tokens, self.tail.id_documents, self.where)


@dataclass(frozen=True)
class Gold:
    """The right answers of a question and the documents that hold them, in hop order where there are several hops.

    ``rejected`` answers make a prediction wrong whatever else it says (an outdated value). ``group`` is shared by questions
    that ask the same thing in other words.
    """

    question_id: str
    answers: list[str]
    gold_doc_ids: list[int]
    grades: Mapping[int, float] | None = None  # by document, gold or not, where people judged by degree
    rejected: list[str] = field(default_factory=list)
    group: str | None = None


@dataclass
class Cell:
    """A task at one context: the first ``base_documents`` of the tail, questions, overlays (id -> documents) and gold.

    ``unavailable`` is the reason why there is nothing to ask, on a machine without the data; ``notes`` go to view.json.
    ``floor`` is the accuracy of ``floor_of``, a way to answer without the memory; empty where nothing can be guessed.
    """

    context: str
    base_documents: int
    unavailable: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    floor: float = 0.0
    floor_of: str = ""
    questions: list[Question] = field(default_factory=list)
    overlays: dict[str, list[Document]] = field(default_factory=dict)
    gold: list[Gold] = field(default_factory=list)


class CorpusModule(Protocol):
    """A kind of corpus."""

    def make_corpus(self, request: CorpusRequest) -> Iterator[Document]:
        """Stream documents until ``request.num_tokens`` are filled; the same request gives the same documents."""


class TaskModule(Protocol):
    """A kind of task."""

    def prepare(self, request: TaskRequest) -> Iterator[Cell]:
        """One cell for each context in order; question ids name the same question in every context.

        Raises:
            UserError: a context too small for the task's own documents.
        """


def base_documents(request: TaskRequest, context: str, reserved_tokens: int, least: int = 0) -> int:
    """The largest tail prefix that leaves ``reserved_tokens`` (head or needles, prompt, answer) free in a context.

    Raises:
        UserError: fewer than ``least`` documents fit.
    """
    size = request.contexts[context]
    number = request.tail.prefix(size - reserved_tokens) if size >= reserved_tokens else -1
    if number < least:
        raise UserError(
            f"{request.where}: context {context} ({size:,} tokens) is below the smallest head: head or needles, prompt and"
            f" answer need {reserved_tokens:,} tokens and {least} documents; remove the context or lower the task's size"
        )
    return number
