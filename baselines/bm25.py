"""RAG with BM25 (Robertson and Zaragoza 2009): Okapi ranking, exact under prefixes and overlays; then reading.

The formulas are those of rank-bm25's ``BM25Okapi``, and a test holds both to the same scores. rank-bm25 loops over
every document for every word. Here a view is counted once, as a sparse matrix, and an overlay changes only the
statistics that it touches: a question's scores are, to the last bit, those of an index built over its own corpus. A
large view is held by bm25s, which stores finished scores. It proposes candidates by the base's statistics, and they are
scored exactly.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from time import perf_counter
from typing import Any

import numpy as np
from scipy import sparse

from baselines.base import Resources, params_of
from baselines.parts.cost import reading_ranked
from baselines.parts.reading import RagParams
from baselines.parts.retrieval import KEPT_OVERLAYS, Ranked, RetrievalSystem, Retriever, best, best_places
from msa_base.records import CorpusView, Document, LayeredCorpus, Question, tie_order
from msa_base.specs import SystemSpec
from msa_base.validate import Positive, Share, Tokens, build

NEEDS = ("model",)
_CHINESE = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHINESE}]|[^\W{_CHINESE}]+")  # text without spaces is counted by character
DECIMALS = 9  # of a score that ranks: the order of a sum is no reason to rank
MARGIN = 256  # candidates beyond those asked for: how far an overlay's own statistics may move a document


@dataclass(frozen=True)
class Okapi:
    """BM25's constants, as rank-bm25's but for ``epsilon``: with 0.25 a word of most documents outweighs rarer ones.

    From ``large_documents`` documents on, bm25s proposes candidates, whose scores are then computed exactly.
    """

    k1: Positive = 1.5
    b: Share = 0.75
    epsilon: Share = 0.0
    large_documents: Tokens = 200_000


RetrieverParams = Okapi  # as a stage of another


@dataclass(frozen=True)
class Params(Okapi, RagParams):
    """How to rank and what to read."""


def words_of(text: str) -> list[str]:
    """Words in lower case; one in Unicode's decomposed form is the same word as in its composed form (NFC)."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


class Words:
    """Word ids, given in order of appearance, and each text's word counts, counted once."""

    def __init__(self) -> None:
        self.ids: defaultdict[str, int] = defaultdict()
        self.ids.default_factory = self.ids.__len__
        self._bags: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def bag(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Word ids of a text and how often each occurs."""
        if text not in self._bags:
            counts = Counter(self.ids_of(text))
            self._bags[text] = np.array(list(counts), np.int32), np.array(list(counts.values()), np.int32)
        return self._bags[text]

    def ids_of(self, text: str) -> list[int]:
        """Word ids of a text, repeats included."""
        return [self.ids[word] for word in words_of(text)]

    def query(self, text: str) -> list[int]:
        """Known words of a query, repeats included; unknown ones score nothing."""
        return [self.ids[word] for word in words_of(text) if word in self.ids]


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
        matrices = (self.by_document, self.by_word)
        return sum(part.nbytes for matrix in matrices for part in (matrix.data, matrix.indices, matrix.indptr))

    def scores(self, weights: list[tuple[int, float]], mean_length: float, params: Okapi) -> np.ndarray:
        """Okapi scores of all documents for (word, idf) pairs, added in the order of the query."""
        norms = params.k1 * (1 - params.b + params.b * self.lengths / mean_length)
        scores = np.zeros(len(self.lengths))
        for word, idf in weights:
            if word >= len(self.by_word.indptr) - 1:  # it came with documents of another view
                continue
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
        floor = params.epsilon * float(np.log(odds).mean(where=self.frequency > 0)) if self.frequency.any() else 0.0
        # Lucene's idf leaves, rank-bm25's comes: bm25s has no idf that is floored
        idf = np.where(odds >= 1, np.log(odds), floor) / np.log1p(odds)
        self._index.scores["data"] *= np.repeat(idf, self.frequency).astype(np.float32)

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self._index.scores.values() if isinstance(part, np.ndarray))

    def candidates(self, query: list[int], count: int, ties: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Rows of the ``count`` best documents; equals by ``ties`` of their rows."""
        known = [word for word in query if word < len(self.frequency)]
        scores = self._index.get_scores_from_ids(known) if known else np.zeros(len(self.lengths), np.float32)
        return best_places(np.arange(len(scores)), scores, count, ties)


class Statistics:
    """What BM25 knows of one question's corpus; ``base`` is what the base alone is counted into."""

    def __init__(self, corpus: LayeredCorpus, base: Postings | Proposals, words: Words, params: Okapi) -> None:
        self.corpus, self._base, self._words, self.params = corpus, base, words, params
        rows = list(corpus.replaced)
        self._added = Postings(corpus.added, words)
        lost = Postings([corpus.base[row] for row in rows], words).frequency
        total_length = base.lengths.sum() + self._added.lengths.sum() - base.lengths[rows].sum()
        self._mean_length = float(total_length) / len(corpus) or 1.0  # no document has a word
        # each has as many words as were known when it was counted, and another thread may count documents meanwhile
        counts = base.frequency, lost, self._added.frequency
        width = max(map(len, counts))
        of_base, of_lost, of_added = (np.pad(count, (0, width - len(count))) for count in counts)
        self._frequency = of_base - of_lost + of_added

    @cached_property
    def _floor(self) -> float:
        # words of one frequency share one idf: the mean over all words is a sum over distinct frequencies
        times = np.bincount(self._frequency)
        times[0] = 0
        frequencies = np.flatnonzero(times)
        idf = np.log(len(self.corpus) - frequencies + 0.5) - np.log(frequencies + 0.5)
        return self.params.epsilon * float(times[frequencies] @ idf) / int(times.sum())

    def _idf(self, word: int) -> float:
        frequency = int(self._frequency[word]) if word < len(self._frequency) else 0
        if frequency == 0:
            return 0.0
        idf = math.log(len(self.corpus) - frequency + 0.5) - math.log(frequency + 0.5)
        return idf if idf >= 0 else self._floor

    def _scores(self, postings: Postings, query: list[int]) -> np.ndarray:
        return postings.scores([(word, self._idf(word)) for word in query], self._mean_length, self.params)

    def scores(self, query: list[int]) -> np.ndarray:
        """Scores of all documents by place."""
        scores = np.empty(len(self.corpus))
        scores[self.corpus.base_places(np.arange(len(self.corpus.base)))] = self._scores(self._base, query)
        scores[self.corpus.added_places] = self._scores(self._added, query)
        return scores

    def best(self, question: Question, depth: int) -> list[Document]:
        corpus, query = self.corpus, self._words.query(question.text)
        if isinstance(self._base, Postings):
            return best(corpus, np.arange(len(corpus)), np.round(self.scores(query), DECIMALS), depth, question)

        def ties(rows: np.ndarray) -> np.ndarray:
            return tie_order(question.text, corpus.base_ids[rows])

        rows = self._base.candidates(query, depth + len(corpus.replaced) + MARGIN, ties)
        places = np.union1d(corpus.base_places(rows), corpus.added_places)
        candidates = Postings([corpus[place] for place in places.tolist()], self._words)
        return best(corpus, places, np.round(self._scores(candidates, query), DECIMALS), depth, question)


class BM25Retriever(Retriever):
    """Counts a view when it is ingested; its overlays' statistics are made when first asked for."""

    stage = "bm25"

    def __init__(self, params: Okapi) -> None:
        self.params = params
        self._words = Words()

    def ingest(self, view: CorpusView) -> None:
        for document in (document for overlay in view.overlays.values() for document in overlay.added):
            self._words.bag(document.text)
        if len(view.base) >= self.params.large_documents:
            self._base = Proposals(view.base, self._words, self.params)
        else:
            self._base = Postings(list(view.base), self._words)
        counted = partial(Statistics, base=self._base, words=self._words, params=self.params)
        self.statistics = lru_cache(KEPT_OVERLAYS)(counted)

    def memory_bytes(self) -> int:
        return self._base.num_bytes

    def over(self, view: CorpusView) -> BM25Retriever:
        """Words of documents that were met before are not counted again."""
        found = copy(self)
        found.ingest(view)
        return found

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        ranked, elapsed_s = [], 0.0
        for question in questions:
            statistics = self.statistics(view.documents(question))  # counting an overlay is no question's latency
            started_s = perf_counter()
            ranked.append(statistics.best(question, depth))
            elapsed_s += perf_counter() - started_s
        return Ranked(ranked, {"retrieve": elapsed_s})


estimate_cell = partial(reading_ranked, Params)  # counting and ranking words takes little beside that


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> BM25Retriever:
    return BM25Retriever(build(Okapi, params, where))


def make(spec: SystemSpec, resources: Resources) -> RetrievalSystem:
    """Open the reader; the index is counted in memory from each view."""
    params = params_of(Params, spec)
    return RetrievalSystem(params, resources, BM25Retriever(params))
