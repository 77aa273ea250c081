"""RAG with dense retrieval: a flat inner-product index (FAISS, exact) over unit embeddings, then the common reader.

The tail is embedded once, into embeddings.safetensors. A view searches its prefix of it; the documents of overlays
are embedded when first met and scored beside it, and a replaced document never counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from baselines.base import IndexResources, Resources, read_params
from baselines.models import open_embedder, take_usage
from baselines.reading import RagParams, ReadingSystem, Selection, Timer, selection
from configs.errors import UserError
from configs.load import IndexSpec, SystemSpec
from configs.records import CorpusView, Document, Question
from configs.tables import read_corpus, whole_file

EMBEDDINGS = "embeddings.safetensors"


@dataclass(frozen=True)
class Params(RagParams):
    """Retrieval depth and reading order."""


@dataclass(frozen=True)
class IndexParams:
    """``batch`` documents are embedded at a time."""

    batch: int = 32


def build_index(spec: IndexSpec, resources: IndexResources, directory: Path) -> dict[str, Any]:
    """Embed a corpus: tensors ``embeddings`` [N, D] float32 and ``doc_ids`` [N] int64."""
    from safetensors.numpy import save
    from tqdm import tqdm

    params = read_params(IndexParams, spec.params, "systems.yaml: params of kind 'dense'")
    embedder = open_embedder(resources.model, resources.threads)
    corpus = read_corpus(resources.corpus)
    rows = []
    for start in tqdm(range(0, len(corpus), params.batch), desc="embedding", unit="batch"):
        rows.append(embedder.documents(corpus[start : start + params.batch]))
    tensors = {
        "embeddings": np.ascontiguousarray(np.concatenate(rows), np.float32),
        "doc_ids": np.asarray([document.doc_id for document in corpus], np.int64),
    }
    with whole_file(directory / EMBEDDINGS) as temporary:
        temporary.write_bytes(save(tensors))
    return take_usage(embedder=embedder)


def load_embeddings(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [N, D] and document ids [N] of an index directory.

    Raises:
        UserError: the file is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = directory / EMBEDDINGS
    try:
        tensors = load_file(path)
        return tensors["embeddings"], tensors["doc_ids"]
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{path}: not a readable index ({error}); delete {directory} and run the same command again"
        ) from None


class Dense(ReadingSystem):
    """Searches the prefix of the index that a view holds, and the question's overlay beside it."""

    def __init__(self, params: Params, resources: Resources) -> None:
        import faiss

        super().__init__(resources)
        if resources.index is None:
            raise UserError("systems.yaml: a system of kind 'dense' needs an index; add `index:` to its entry")
        faiss.omp_set_num_threads(resources.threads)
        self.params = params
        self._embedder = open_embedder(resources.index_model, resources.threads)
        embeddings, self._doc_ids = load_embeddings(resources.index)
        self._index = faiss.IndexFlatIP(embeddings.shape[1])
        self._index.add(embeddings)
        self._overlay_embeddings: dict[Document, np.ndarray] = {}  # heads recur from context to context
        self._view: CorpusView | None = None

    def ingest(self, view: CorpusView) -> None:
        """Check that the view is a prefix of the index."""
        ids = [document.doc_id for document in view.base]
        if ids != self._doc_ids[: len(ids)].tolist():
            raise UserError("the dense index is of another corpus than its view; run `python -m baselines.index` again")
        self._view = view
        self._positions = {doc_id: row for row, doc_id in enumerate(ids)}

    def select(self, questions: list[Question], view: CorpusView) -> list[Selection]:
        """Embed and search all questions at once, then rank each with its overlay."""
        if view is not self._view:
            self.ingest(view)
        self._embed_overlays(questions, view)
        timer = Timer()  # overlays stand for indexed documents, so embedding them is no question's latency
        queries = self._embedder.queries([question.text for question in questions])
        found = self._search(queries, questions, view)
        ranked = [self._merge(*item, view) for item in zip(questions, queries, *found, strict=True)]
        share_s = timer.elapsed_s / len(questions)
        return [selection(documents, "dense", self.params, share_s) for documents in ranked]

    def take_usage(self) -> dict[str, Any]:
        """What a served reader and a served embedder cost."""
        return take_usage(reader=self.reader, embedder=self._embedder)

    def _embed_overlays(self, questions: list[Question], view: CorpusView) -> None:
        met = dict.fromkeys(document for question in questions for document in view.overlay(question).added)
        fresh = [document for document in met if document not in self._overlay_embeddings]
        if fresh:
            self._overlay_embeddings.update(zip(fresh, self._embedder.documents(fresh), strict=True))

    def _search(
        self, queries: np.ndarray, questions: list[Question], view: CorpusView
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows of the base's best, deep enough that no replaced document costs a place."""
        import faiss

        replaced = max(self._num_replaced(question, view) for question in questions)
        depth = min(self.params.routed_k + replaced, len(view.base))
        if depth == 0:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        prefix = faiss.SearchParameters(sel=faiss.IDSelectorRange(0, len(view.base)))
        return self._index.search(queries, depth, params=prefix)

    def _num_replaced(self, question: Question, view: CorpusView) -> int:
        return sum(document.doc_id in self._positions for document in view.overlay(question).added)

    def _merge(
        self, question: Question, query: np.ndarray, scores: np.ndarray, rows: Sequence[int], view: CorpusView
    ) -> list[Document]:
        added = view.overlay(question).added
        replaced = {self._positions[document.doc_id] for document in added if document.doc_id in self._positions}
        candidates = [
            (-float(score), int(row), view.base[row])
            for score, row in zip(scores, rows, strict=True)
            if int(row) not in replaced
        ]
        for place, document in enumerate(added):
            # among equals the earlier document is first: new ones stand before the base, replacements in their row
            row = self._positions.get(document.doc_id, place - len(added))
            candidates.append((-float(query @ self._overlay_embeddings[document]), row, document))
        candidates.sort(key=lambda item: item[:2])
        return [document for _, _, document in candidates[: self.params.routed_k]]


def make(spec: SystemSpec, resources: Resources) -> Dense:
    """Open the index, the embedder and the reader."""
    return Dense(read_params(Params, spec.params, "systems.yaml: params of kind 'dense'"), resources)
