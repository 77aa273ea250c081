"""RAG with reranking (Nogueira and Cho 2019): a stage's candidates scored again, question and document together, then read.

The model is a cross-encoder (a reference that reranks), or a decoder of this project by query likelihood (Sachan et al. 2022),
as the entry's ``reranker`` names it; without one the reader itself scores. As in the paper's setting 100 candidates are
reranked. A pair is scored once: corpora are nested, and most candidates are met again at the next context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from baselines.base import Resources, read_params
from baselines.models import open_reranker, take_usage
from baselines.reading import RagParams, Timer
from baselines.retrieval import Ranked, RetrievalSystem, Retriever, open_stage
from configs.errors import UserError
from configs.load import SystemSpec
from configs.records import CorpusView, Document, Question


@dataclass(frozen=True)
class Reranking:
    """The first stage with its parameters, and how many of its documents are scored again."""

    first: str = "dense"
    first_params: dict[str, Any] = field(default_factory=dict)
    candidates: int = 100

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise UserError(f"candidates {self.candidates}: rerank one document at least")


@dataclass(frozen=True)
class Params(Reranking, RagParams):
    """How to rank and what to read."""

    def __post_init__(self) -> None:
        Reranking.__post_init__(self)
        RagParams.__post_init__(self)


class Reranked(Retriever):
    """A first stage and a reranker behind it."""

    stage = "rerank"

    def __init__(self, params: Reranking, resources: Resources, where: str) -> None:
        self.params = params
        self.first = open_stage(params.first, params.first_params, resources, f"{where}: first_params")
        self._reranker = open_reranker(resources.reranker or resources.model, resources.threads)
        self._scores: dict[tuple[str, Document], float] = {}

    def ingest(self, view: CorpusView) -> None:
        """Make the first stage ready."""
        self.first.ingest(view)

    def prepare(self, questions: Sequence[Question], view: CorpusView) -> None:
        """What overlays cost the first stage."""
        self.first.prepare(questions, view)

    def memory_bytes(self) -> int:
        """What the first stage keeps."""
        return self.first.memory_bytes()

    def take_usage(self) -> dict[str, Any]:
        """What served models cost."""
        return {**self.first.take_usage(), **take_usage(reranker=self._reranker)}

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        """The first stage's candidates by their new scores; equals, and what lies behind the candidates, keep its order."""
        candidates = self.params.candidates
        found = self.first.rank(questions, view, max(depth, candidates))
        timer = Timer()
        pairs = {
            (question.text, document): None
            for question, ranked in zip(questions, found.documents, strict=True)
            for document in ranked[:candidates]
        }
        unknown = [pair for pair in pairs if pair not in self._scores]
        if unknown:
            self._scores.update(zip(unknown, self._reranker.scores(unknown).tolist(), strict=True))
        documents = []
        for question, ranked in zip(questions, found.documents, strict=True):
            scores = np.asarray([self._scores[question.text, document] for document in ranked[:candidates]])
            order = np.argsort(-scores, kind="stable") if len(scores) else []
            documents.append([*(ranked[place] for place in order), *ranked[candidates:]][:depth])
        return Ranked(documents, {**found.stage_s, "rerank": timer.elapsed_s})


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> Reranked:
    """The retriever as a stage of another."""
    return Reranked(read_params(Reranking, params, where), resources, where)


def make(spec: SystemSpec, resources: Resources) -> RetrievalSystem:
    """Open the first stage, the reranker and the reader."""
    where = "systems.yaml: params of kind 'rerank'"
    params = read_params(Params, spec.params, where)
    return RetrievalSystem(params, resources, Reranked(params, resources, where))
