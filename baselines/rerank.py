"""RAG with reranking (Nogueira and Cho 2019): a stage's candidates scored again, question and document together.

The model is a cross-encoder (a reference that reranks), or a decoder of this project by query likelihood (Sachan et al.
2022), as the entry's ``reranker`` names it; without one the reader itself scores. As in the paper's setting 100
candidates are reranked. A pair is scored once: corpora are nested, and most candidates are met again at the next
context.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from baselines.base import Estimate, MemoryPart, PlannedCell, Resources, params_of
from baselines.parts.cost import KERNELS, reading_documents, weights
from baselines.parts.models import open_reranker
from baselines.parts.reading import RagParams
from baselines.parts.retrieval import Ranked, RetrievalSystem, Retriever, StageParams, open_stage
from msa.model import cost
from msa_base.errors import UserError
from msa_base.records import CorpusView, Document, Question
from msa_base.specs import SystemSpec
from msa_base.validate import Count, build

NEEDS = ("model",)
PAIR_BATCH_TOKENS = 4096  # padded tokens that the reranker reads at once (msa.generation.likelihood)
LOGIT_BYTES = 10  # of one in bfloat16, in float32 and as a logarithm


@dataclass(frozen=True)
class Reranking:
    """The first stage with its parameters, and how many of its documents are scored again."""

    first: str = "dense"
    first_params: dict[str, Any] = field(default_factory=dict)
    candidates: Count = 100

    @property
    def stage_params(self) -> StageParams:
        """The retriever that it opens: kind -> parameters."""
        return {self.first: self.first_params}


@dataclass(frozen=True)
class Params(Reranking, RagParams):
    """How to rank and what to read."""


RetrieverParams = Reranking  # as a stage of another


class Reranked(Retriever):
    """A first stage and a reranker behind it."""

    stage = "rerank"

    def __init__(self, params: Reranking, resources: Resources, where: str) -> None:
        self.params = params
        self.first = open_stage(params.first, params.first_params, resources, f"{where}: first_params")
        self._reranker = open_reranker(resources.reranker or resources.model, resources.threads)
        self.models = {**self.first.models, "reranker": self._reranker}
        self._scores: dict[tuple[str, Document], float] = {}

    def ingest(self, view: CorpusView) -> None:
        self.first.ingest(view)

    def memory_bytes(self) -> int:
        return self.first.memory_bytes()

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        """The first stage's candidates by their new scores; equals and all behind the candidates keep its order."""
        candidates = self.params.candidates
        found = self.first.rank(questions, view, max(depth, candidates))
        started_s = perf_counter()
        asked = list(zip(questions, found.documents, strict=True))
        pairs = dict.fromkeys(
            (question.text, document) for question, ranked in asked for document in ranked[:candidates]
        )
        if unknown := [pair for pair in pairs if pair not in self._scores]:
            scores = np.asarray(self._reranker.scores(unknown))
            if scores.shape != (len(unknown),) or not np.isfinite(scores).all():
                wrong = f"its model gives {scores.size} scores for {len(unknown)} pairs, or some that are not finite"
                raise UserError(f"systems.yaml: kind 'rerank': {wrong}; name another `reranker`")
            self._scores.update(zip(unknown, scores.tolist(), strict=True))
        documents = []
        for question, ranked in asked:
            scores = np.asarray([self._scores[question.text, document] for document in ranked[:candidates]])
            order = np.argsort(-scores, kind="stable") if len(scores) else []
            documents.append([*(ranked[place] for place in order), *ranked[candidates:]][:depth])
        return Ranked(documents, {**found.stage_s, "rerank": perf_counter() - started_s})


def estimate_cell(cell: PlannedCell) -> Estimate:
    """The reranker reads every candidate with its question, and the best are read for the answer."""
    params, work, reranker = params_of(Params, cell.spec), cell.work, cell.reranker
    read = reading_documents(cell, params.read_k)
    if reranker is None:
        return replace(read, stages=None)
    pairs = min(params.candidates, len(work.base) + len(work.overlay))
    tokens = work.document_tokens + work.question_tokens
    pair = cost.read_cost(reranker, tokens, logits=work.question_tokens)
    logits = PAIR_BATCH_TOKENS * work.question_tokens / tokens * reranker.vocab_size * LOGIT_BYTES
    parts = (
        *read.parts,
        weights(reranker, cell.dtype, "reranker"),
        MemoryPart("pair logits", logits, "device"),
        MemoryPart("pair work", cost.activation_bytes(reranker, PAIR_BATCH_TOKENS, cell.dtype), "device"),
        KERNELS,
    )
    return replace(read, parts=parts, stages=(read.stages or {}) | {"rerank": pair * (work.questions * pairs)})


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> Reranked:
    return Reranked(build(Reranking, params, where), resources, where)


def make(spec: SystemSpec, resources: Resources) -> RetrievalSystem:
    where = "systems.yaml: params of kind 'rerank'"
    params = build(Params, spec.params, where)
    return RetrievalSystem(params, resources, Reranked(params, resources, where))
