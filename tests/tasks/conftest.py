"""A small part of the standard library's prose, a tokenizer made from it, and requests over small contexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer

from msa_base.tables import write_table
from tasks.base import CorpusRequest, TaskRequest
from tasks.parts.tail import Tail
from tasks.stages import sources, vocabulary
from tasks.stages.prepare import write_corpus

CONTEXTS = {"4K": 4096, "16K": 16384}


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the prose of the standard library's first files."""
    directory = tmp_path_factory.mktemp("prose")
    rows = sources.collect(islice(sources.source_files(), 240))
    for split in sources.SPLITS:
        write_table("prose", rows[split], directory / f"{split}.parquet")
    return directory


@pytest.fixture(scope="session")
def tokenizer(prose: Path) -> Tokenizer:
    """The word-piece tokenizer of that prose."""
    return vocabulary.make_tokenizer({"kind": "words", "words": 2000, "pieces": 300}, "profile: tokenizer", prose)


@dataclass
class Maker:
    """Makes requests that differ in what a test is about."""

    tokenizer: Tokenizer
    prose: Path
    root: Path

    def corpus(self, name: str, num_tokens: int, **params: Any) -> CorpusRequest:
        """A corpus request."""
        return CorpusRequest(
            name=name,
            params=params,
            where=f"tasks.yaml: corpora: {name}",
            tokenizer=self.tokenizer,
            prose=self.prose,
            num_tokens=num_tokens,
        )

    def tail(self, module: ModuleType, name: str, num_tokens: int, **params: Any) -> Tail:
        """A corpus written once a session."""
        path = self.root / f"{name}-{num_tokens}" / "corpus.parquet"
        if not path.exists():
            write_corpus(module.make_corpus(self.corpus(name, num_tokens, **params)), path, num_tokens)
        return Tail(path)

    def task(
        self,
        name: str,
        tail: Tail,
        questions: int,
        contexts: dict[str, int] | None = None,
        corpus: dict | None = None,
        **params: Any,
    ) -> TaskRequest:
        """A task request over a tail."""
        return TaskRequest(
            name=name,
            params=params,
            where=f"tasks.yaml: tasks: {name}",
            tokenizer=self.tokenizer,
            prose=self.prose,
            corpus="tail",
            corpus_params=corpus or {},
            tail=tail,
            contexts=contexts or CONTEXTS,
            questions=questions,
        )


@pytest.fixture(scope="session")
def make(tokenizer: Tokenizer, prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes requests."""
    return Maker(tokenizer, prose, tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def documents_of() -> Callable:
    """From (tail, cell, question) to all documents by id, as a system sees them."""

    def documents(tail: Tail, cell: Any, question: Any) -> dict[int, Any]:
        from msa_base.records import CorpusView, Overlay

        base = tail.take(set(range(cell.base_documents)))
        overlays = {name: Overlay(name, tuple(added)) for name, added in cell.overlays.items()}
        view = CorpusView([base[index] for index in range(cell.base_documents)], overlays)
        seen = list(view.documents(question))
        assert len({document.doc_id for document in seen}) == len(seen)
        return {document.doc_id: document for document in seen}

    return documents
