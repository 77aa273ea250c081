"""RAG with BM25: Okapi ranking over an inverted index, exact under prefixes and overlays, then the common reader.

The formulas are those of rank-bm25's ``BM25Okapi`` (idf floored at ``epsilon`` times the mean idf), which loops over
every document for every word; a test holds both to the same scores. Here a view is counted once as a sparse matrix,
and an overlay only changes the statistics that it touches, so that each question's scores are those of an index
rebuilt over its own corpus, to the last bit.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from baselines.base import Resources, read_params
from baselines.reading import RagParams, ReadingSystem, Selection, Timer, selection
from configs.errors import UserError
from configs.load import SystemSpec
from configs.records import CorpusView, Document, Overlay, Question

_CHINESE = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHINESE}]|[^\W{_CHINESE}]+")  # text without spaces is counted by character
KEPT_OVERLAYS = 32  # the heads of one cell; a needle's overlay is asked once


@dataclass(frozen=True)
class Params(RagParams):
    """BM25's constants, with rank-bm25's defaults."""

    k1: float = 1.5
    b: float = 0.75
    epsilon: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k1 <= 0 or not 0 <= self.b <= 1:
            raise UserError(f"k1 {self.k1} and b {self.b}: set k1 > 0 and 0 <= b <= 1")


class Words:
    """Word ids, given in order of appearance, and each text's word counts, counted once."""

    def __init__(self) -> None:
        self.ids: defaultdict[str, int] = defaultdict()
        self.ids.default_factory = self.ids.__len__
        self._bags: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def bag(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Word ids of a text and how often each occurs."""
        found = self._bags.get(text)
        if found is None:
            counts = Counter(_WORD.findall(text.lower()))
            ids = np.fromiter((self.ids[word] for word in counts), np.int32, len(counts))
            found = self._bags[text] = ids, np.fromiter(counts.values(), np.int32, len(counts))
        return found

    def query(self, text: str) -> list[int]:
        """Known words of a query, repeats included; unknown ones score nothing."""
        return [self.ids[word] for word in _WORD.findall(text.lower()) if word in self.ids]


class Postings:
    """Which of some documents hold a word, and how often."""

    def __init__(self, documents: list[Document], words: Words) -> None:
        bags = [words.bag(document.text) for document in documents]
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids, _ in bags])]).astype(np.int64)
        ids = np.concatenate([ids for ids, _ in bags]) if bags else np.zeros(0, np.int32)
        counts = np.concatenate([counts for _, counts in bags]) if bags else np.zeros(0, np.int32)
        self.by_document = sparse.csr_array((counts, ids, starts), shape=(len(documents), len(words.ids)))
        self.by_word = self.by_document.tocsc()
        self.lengths = np.asarray(self.by_document.sum(axis=1), np.int64).reshape(-1)

    @cached_property
    def frequency(self) -> np.ndarray:
        """Documents that hold each word."""
        return np.diff(self.by_word.indptr)

    @property
    def num_bytes(self) -> int:
        """Memory of the two matrices."""
        return sum(
            part.nbytes
            for matrix in (self.by_document, self.by_word)
            for part in (matrix.data, matrix.indices, matrix.indptr)
        )

    def scores(self, weights: list[tuple[int, float]], mean_length: float, params: Params) -> np.ndarray:
        """Okapi scores of all documents for (word, idf) pairs, added in the order of the query."""
        norms = params.k1 * (1 - params.b + params.b * self.lengths / mean_length)
        scores = np.zeros(len(self.lengths))
        for word, idf in weights:
            span = slice(self.by_word.indptr[word], self.by_word.indptr[word + 1])
            rows, counts = self.by_word.indices[span], self.by_word.data[span]
            scores[rows] += idf * (counts * (params.k1 + 1) / (counts + norms[rows]))
        return scores


class Statistics:
    """What BM25 knows of one question's corpus: the base with an overlay laid over it."""

    def __init__(
        self, base: Postings, positions: dict[int, int], overlay: Overlay, words: Words, params: Params
    ) -> None:
        self.params = params
        is_new = [document.doc_id not in positions for document in overlay.added]
        new = [document for document, flag in zip(overlay.added, is_new, strict=True) if flag]
        replacing = [document for document, flag in zip(overlay.added, is_new, strict=True) if not flag]
        self.new = new
        self.replaced = {positions[document.doc_id]: document for document in replacing}
        rows = list(self.replaced)
        self._base, self._added = base, Postings(new + list(self.replaced.values()), words)
        self.num_documents = len(base.lengths) + len(new)
        total_length = base.lengths.sum() + self._added.lengths.sum() - base.lengths[rows].sum()
        self._mean_length = float(total_length) / self.num_documents
        lost = np.zeros_like(base.frequency)
        for row in rows:
            matrix = base.by_document
            lost[matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]] += 1
        self._frequency = base.frequency - lost + self._added.frequency

    @cached_property
    def _floor(self) -> float:
        # words of one frequency share one idf: the mean over all words is a sum over distinct frequencies
        times = np.bincount(self._frequency)
        times[0] = 0
        frequencies = np.flatnonzero(times)
        idf = np.log(self.num_documents - frequencies + 0.5) - np.log(frequencies + 0.5)
        return self.params.epsilon * float(times[frequencies] @ idf) / int(times.sum())

    def _idf(self, word: int) -> float:
        frequency = int(self._frequency[word])
        if frequency == 0:
            return 0.0
        idf = math.log(self.num_documents - frequency + 0.5) - math.log(frequency + 0.5)
        return idf if idf >= 0 else self._floor

    def scores(self, query: list[int]) -> np.ndarray:
        """Scores in the order of ``CorpusView.documents``: new documents of the overlay, then the base with replacements."""
        weights = [(word, self._idf(word)) for word in query]
        base = self._base.scores(weights, self._mean_length, self.params)
        added = self._added.scores(weights, self._mean_length, self.params)
        base[list(self.replaced)] = added[len(self.new) :]
        return np.concatenate([added[: len(self.new)], base])

    def document(self, position: int, view: CorpusView) -> Document:
        """The document at a position of :meth:`scores`."""
        if position < len(self.new):
            return self.new[position]
        row = position - len(self.new)
        return self.replaced.get(row) or view.base[row]


class BM25(ReadingSystem):
    """Counts a view when it is ingested; its overlays' statistics are made when first asked for."""

    def __init__(self, params: Params, resources: Resources) -> None:
        super().__init__(resources)
        self.params = params
        self._words = Words()
        self._view: CorpusView | None = None

    def ingest(self, view: CorpusView) -> None:
        """Count every word of the base and of the overlays."""
        for overlay in view.overlays.values():
            for document in overlay.added:
                self._words.bag(document.text)
        for document in view.base:
            self._words.bag(document.text)
        self._view = view
        self._base = Postings(list(view.base), self._words)
        self._positions = {document.doc_id: row for row, document in enumerate(view.base)}
        self._statistics: dict[str, Statistics] = {}

    def memory_bytes(self, view: CorpusView) -> int:
        """Bytes of the postings of the base."""
        return self._base.num_bytes

    def rank(self, question: Question, statistics: Statistics, view: CorpusView, top: int) -> list[Document]:
        """The best documents of the question's corpus, best first; of equals the earlier one first."""
        order = np.argsort(-statistics.scores(self._words.query(question.text)), kind="stable")
        return [statistics.document(int(position), view) for position in order[:top]]

    def _overlay_statistics(self, overlay: Overlay) -> Statistics:
        found = self._statistics.get(overlay.overlay_id)
        if found is None:
            if len(self._statistics) == KEPT_OVERLAYS:
                del self._statistics[next(iter(self._statistics))]
            found = Statistics(self._base, self._positions, overlay, self._words, self.params)
            self._statistics[overlay.overlay_id] = found
        return found

    def select(self, questions: list[Question], view: CorpusView) -> list[Selection]:
        """Rank for each question on its own."""
        if view is not self._view:
            self.ingest(view)
        selections = []
        for question in questions:
            statistics = self._overlay_statistics(view.overlay(question))
            timer = Timer()  # overlays stand for indexed documents, so counting them is no question's latency
            ranked = self.rank(question, statistics, view, self.params.routed_k)
            selections.append(selection(ranked, "bm25", self.params, timer.elapsed_s))
        return selections


def make(spec: SystemSpec, resources: Resources) -> BM25:
    """Open the reader; the index is counted in memory from each view."""
    return BM25(read_params(Params, spec.params, "systems.yaml: params of kind 'bm25'"), resources)
