"""RAG with BM25 (Robertson and Zaragoza 2009): Okapi ranking, exact under prefixes and overlays, then the common reader.

Kept: the formulas of rank-bm25's ``BM25Okapi`` (idf floored at ``epsilon`` times the mean idf), which loops over every
document for every word; a test holds both to the same scores. Changed: a view is counted once as a sparse matrix, and an
overlay only changes the statistics that it touches, so that each question's scores are those of an index rebuilt over its
own corpus, to the last bit. A large view is held by bm25s, which scores it eagerly: it proposes candidates under the
base's statistics, and those are scored exactly.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from baselines.base import Resources, read_params
from baselines.reading import RagParams, Timer
from baselines.retrieval import Ranked, RetrievalSystem, Retriever
from configs.errors import UserError
from configs.load import SystemSpec
from configs.records import CorpusView, Document, Overlay, Question

_CHINESE = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHINESE}]|[^\W{_CHINESE}]+")  # text without spaces is counted by character
KEPT_OVERLAYS = 32  # the heads of one cell; a needle's overlay is asked once
MARGIN = 256  # candidates beyond those asked for: how far an overlay's own statistics may move a document


@dataclass(frozen=True)
class Okapi:
    """BM25's constants, with rank-bm25's defaults but ``epsilon``: with its 0.25 a word of most documents outweighs rarer ones.

    From ``large_documents`` documents on, bm25s proposes candidates, whose scores are then computed exactly.
    """

    k1: float = 1.5
    b: float = 0.75
    epsilon: float = 0.0
    large_documents: int = 200_000

    def __post_init__(self) -> None:
        if self.k1 <= 0 or not 0 <= self.b <= 1:
            raise UserError(f"k1 {self.k1} and b {self.b}: set k1 > 0 and 0 <= b <= 1")


@dataclass(frozen=True)
class Params(Okapi, RagParams):
    """How to rank and what to read."""

    def __post_init__(self) -> None:
        Okapi.__post_init__(self)
        RagParams.__post_init__(self)


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

    def ids_of(self, text: str) -> list[int]:
        """Word ids of a text, repeats included."""
        return [self.ids[word] for word in _WORD.findall(text.lower())]

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

    def scores(self, weights: list[tuple[int, float]], mean_length: float, params: Okapi) -> np.ndarray:
        """Okapi scores of all documents for (word, idf) pairs, added in the order of the query."""
        norms = params.k1 * (1 - params.b + params.b * self.lengths / mean_length)
        scores = np.zeros(len(self.lengths))
        for word, idf in weights:
            span = slice(self.by_word.indptr[word], self.by_word.indptr[word + 1])
            rows, counts = self.by_word.indices[span], self.by_word.data[span]
            scores[rows] += idf * (counts * (params.k1 + 1) / (counts + norms[rows]))
        return scores


class Proposals:
    """The base of a large view as bm25s holds it: scores under the base's own statistics, to find candidates with."""

    def __init__(self, documents: Sequence[Document], words: Words, params: Okapi) -> None:
        import bm25s

        texts = [words.ids_of(document.text) for document in documents]
        self.lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self._index = bm25s.BM25(method="lucene", k1=params.k1, b=params.b)
        self._index.index((texts, dict(words.ids)), create_empty_token=False, show_progress=False)
        self.frequency = np.diff(self._index.scores["indptr"])  # documents that hold each word
        present = np.maximum(self.frequency, 1)
        odds = (len(texts) - present + 0.5) / (present + 0.5)
        floor = params.epsilon * float(np.log(odds)[self.frequency > 0].mean())
        # Lucene's idf leaves, rank-bm25's comes: bm25s has no idf that is floored
        idf = np.where(odds >= 1, np.log(odds), floor) / np.log1p(odds)
        self._index.scores["data"] *= np.repeat(idf, self.frequency).astype(np.float32)

    @property
    def num_bytes(self) -> int:
        """Memory of the score matrix."""
        return sum(part.nbytes for part in self._index.scores.values() if isinstance(part, np.ndarray))

    def candidates(self, query: list[int], count: int) -> np.ndarray:
        """Rows of the ``count`` best documents, in the order of the base."""
        known = [word for word in query if word < len(self.frequency)]
        scores = self._index.get_scores_from_ids(known) if known else np.zeros(len(self.lengths), np.float32)
        if count >= len(scores):
            return np.arange(len(scores))
        # of equals the earlier row, as in the ranking itself
        least = np.partition(scores, -count)[-count]
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        return np.sort(np.concatenate([above, equal[: count - len(above)]]))


class Statistics:
    """What BM25 knows of one question's corpus: the base with an overlay laid over it."""

    def __init__(
        self,
        view: CorpusView,
        base: Postings | Proposals,
        positions: dict[int, int],
        overlay: Overlay,
        words: Words,
        params: Okapi,
    ) -> None:
        self._view, self._base, self._words, self.params = view, base, words, params
        self.new = [document for document in overlay.added if document.doc_id not in positions]
        self.replaced = {positions[d.doc_id]: d for d in overlay.added if d.doc_id in positions}
        rows = list(self.replaced)
        self._added = Postings(self.new + list(self.replaced.values()), words)
        lost = Postings([view.base[row] for row in rows], words).frequency
        width = len(lost)  # words that the base lacks have come with overlays since it was counted
        self.num_documents = len(base.lengths) + len(self.new)
        total_length = base.lengths.sum() + self._added.lengths.sum() - base.lengths[rows].sum()
        self._mean_length = float(total_length) / self.num_documents
        self._frequency = np.pad(base.frequency, (0, width - len(base.frequency))) - lost + self._added.frequency

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

    def _scores(self, postings: Postings, query: list[int]) -> np.ndarray:
        return postings.scores([(word, self._idf(word)) for word in query], self._mean_length, self.params)

    def scores(self, query: list[int]) -> np.ndarray:
        """Scores in the order of ``CorpusView.documents``: new documents of the overlay, then the base with replacements."""
        base, added = self._scores(self._base, query), self._scores(self._added, query)
        base[list(self.replaced)] = added[len(self.new) :]
        return np.concatenate([added[: len(self.new)], base])

    def best(self, query: list[int], depth: int) -> list[Document]:
        """The best documents, best first; of equals the earlier one first."""
        if isinstance(self._base, Proposals):
            found = self._base.candidates(query, depth + len(self.replaced) + MARGIN)
            rows = np.asarray([row for row in found if row not in self.replaced], np.int64)
            base = self._scores(Postings([self._view.base[row] for row in rows.tolist()], self._words), query)
            added = self._scores(self._added, query)
            scores = np.concatenate([added, base])
            places = np.concatenate(
                [np.arange(len(self.new)), len(self.new) + np.asarray([*self.replaced, *rows], np.int64)]
            )
            order = places[np.lexsort((places, -scores))]
        else:
            order = np.argsort(-self.scores(query), kind="stable")
        return [self.document(int(position)) for position in order[:depth]]

    def document(self, position: int) -> Document:
        """The document at a position of :meth:`scores`."""
        if position < len(self.new):
            return self.new[position]
        row = position - len(self.new)
        return self.replaced.get(row) or self._view.base[row]


class BM25Retriever(Retriever):
    """Counts a view when it is ingested; its overlays' statistics are made when first asked for."""

    stage = "bm25"

    def __init__(self, params: Okapi) -> None:
        self.params = params
        self._words = Words()

    def ingest(self, view: CorpusView) -> None:
        """Count every word of the base and of the overlays."""
        for overlay in view.overlays.values():
            for document in overlay.added:
                self._words.bag(document.text)
        if len(view.base) >= self.params.large_documents:
            self._base = Proposals(view.base, self._words, self.params)
        else:
            for document in view.base:
                self._words.bag(document.text)
            self._base = Postings(list(view.base), self._words)
        self._positions = {document.doc_id: row for row, document in enumerate(view.base)}
        self._statistics: dict[str, Statistics] = {}

    def memory_bytes(self) -> int:
        """Bytes of what the base is counted into."""
        return self._base.num_bytes

    def statistics(self, overlay: Overlay, view: CorpusView) -> Statistics:
        """What BM25 knows of a corpus, kept for the overlays met last."""
        found = self._statistics.get(overlay.overlay_id)
        if found is None:
            if len(self._statistics) == KEPT_OVERLAYS:
                del self._statistics[next(iter(self._statistics))]
            found = Statistics(view, self._base, self._positions, overlay, self._words, self.params)
            self._statistics[overlay.overlay_id] = found
        return found

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        """Rank for each question on its own."""
        ranked, elapsed_s = [], 0.0
        for question in questions:
            statistics = self.statistics(view.overlay(question), view)  # counting overlays is no question's latency
            timer = Timer()
            ranked.append(statistics.best(self._words.query(question.text), depth))
            elapsed_s += timer.elapsed_s
        return Ranked(ranked, {"retrieve": elapsed_s})


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> BM25Retriever:
    """The retriever as a stage of another."""
    return BM25Retriever(read_params(Okapi, params, where))


def make(spec: SystemSpec, resources: Resources) -> RetrievalSystem:
    """Open the reader; the index is counted in memory from each view."""
    params = read_params(Params, spec.params, "systems.yaml: params of kind 'bm25'")
    return RetrievalSystem(params, resources, BM25Retriever(params))
