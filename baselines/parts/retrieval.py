"""Retrieval, then reading: what a retriever offers, how one names another, and the system that reads what ranks best.

A module of retrieval also has the hook ``open_retriever`` (baselines.base), so that hybrid and rerank can name it as a
stage of theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from baselines.base import Resources, load_plugin
from baselines.parts.models import ReadingModel
from baselines.parts.reading import RagParams, ReaderInput, ReadingSystem
from msa_base.errors import UserError
from msa_base.records import CorpusView, Document, LayeredCorpus, Question, tie_order

StageParams = dict[str, dict[str, Any]]  # of retrievers that another opens, by their kind
KEPT_OVERLAYS = 32  # whose corpora stay counted or joined: the heads of one cell; a needle's overlay is asked once


@dataclass
class Ranked:
    """The best documents of each question, best first, and the seconds of each stage for all of them together.

    What an overlay costs when it is first met does not count: its documents stand for indexed ones.
    """

    documents: list[list[Document]]
    stage_s: dict[str, float] = field(default_factory=dict)


class Retriever(ABC):
    """Ranks the documents of each question's corpus."""

    stage: str  # the name of its ranking among an answer's routed ids
    models: Mapping[str, Any] = MappingProxyType({})  # those that it opened, by role

    @abstractmethod
    def ingest(self, view: CorpusView) -> None:
        """Do what a view costs once."""

    @abstractmethod
    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        """The ``depth`` best documents of each question (fewer where its corpus has fewer), best first."""

    def memory_bytes(self) -> int:
        """Bytes kept for the view beside the index directory."""
        return 0

    def over(self, view: CorpusView) -> Retriever:
        """This retriever over another view, as :meth:`baselines.base.System.over` has it."""
        raise UserError(f"systems.yaml: '{self.stage}' cannot be edited while it answers; name bm25 or dense")


def best_places(
    places: np.ndarray, scores: np.ndarray, depth: int, ties: Callable[[np.ndarray], np.ndarray] = lambda places: places
) -> np.ndarray:
    """The places of the ``depth`` best scores, best first; of equals the one whose number of ``ties`` is less."""
    if depth < len(scores):
        kept = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
        places, scores = places[kept], scores[kept]
    return places[np.lexsort((ties(places), -scores))[:depth]]


def best(
    corpus: LayeredCorpus, places: np.ndarray, scores: np.ndarray, depth: int, question: Question
) -> list[Document]:
    """The documents at :func:`best_places`; equals in an order drawn for the question, wherever they stand."""

    def ties(places: np.ndarray) -> np.ndarray:
        return tie_order(question.text, corpus.doc_ids(places))

    return [corpus[place] for place in best_places(places, scores, depth, ties).tolist()]


class RetrievalSystem(ReadingSystem):
    """Reads the documents that a retriever ranks best; ``reader`` is the model that reads, where both share it."""

    def __init__(
        self, params: RagParams, resources: Resources, retriever: Retriever, reader: ReadingModel | None = None
    ) -> None:
        super().__init__(resources, reader)
        self.params, self.retriever = params, retriever
        self.models = {**retriever.models, "reader": self.reader}

    def ingest(self, view: CorpusView) -> None:
        super().ingest(view)
        self.retriever.ingest(view)

    def memory_bytes(self, view: CorpusView) -> int:
        return self.retriever.memory_bytes()

    def over(self, view: CorpusView) -> RetrievalSystem:
        found = copy(self)
        found.retriever, found._view, found._read = self.retriever.over(view), view, None
        return found

    def select(self, questions: list[Question], view: CorpusView) -> list[ReaderInput]:
        """Rank for all questions; each bears its share of the time."""
        ranked = self.retriever.rank(questions, view, self.params.routed_k)
        share_s = {stage: seconds / len(questions) for stage, seconds in ranked.stage_s.items()}
        return [self._input(documents, share_s) for documents in ranked.documents]

    def _input(self, ranked: list[Document], stage_s: dict[str, float]) -> ReaderInput:
        routed = [document.doc_id for document in ranked[: self.params.routed_k]]
        return ReaderInput(self.params.in_order(ranked[: self.params.read_k]), {self.retriever.stage: routed}, stage_s)


def open_stage(kind: str, params: dict[str, Any], resources: Resources, where: str) -> Retriever:
    """The retriever of the module that ``kind`` names; a UserError, led by ``where``, if that retrieves nothing."""
    return load_plugin(kind, where).need("open_retriever", where)(params, resources, where)
