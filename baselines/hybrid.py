"""RAG with hybrid retrieval: rankings fused by reciprocal rank (Cormack et al. 2009), then the common reader.

A document's score is the sum over the stages of weight / (constant + its rank there). A stage adds nothing to a
document that is not among its ``candidates``. Equal scores keep the order of the first stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Annotated, Any

from pydantic import Field

from baselines.base import Resources
from baselines.parts.cost import reading_ranked
from baselines.parts.reading import RagParams
from baselines.parts.retrieval import Ranked, RetrievalSystem, Retriever, StageParams, open_stage
from msa_base.records import CorpusView, Document, Question
from msa_base.specs import SystemSpec
from msa_base.validate import Count, Weight, Whole, Wrong, build

NEEDS = ("model",)


@dataclass(frozen=True)
class Fusion:
    """``stages`` maps kinds of retrieval to their parameters; ``weights`` are 1 where none is given."""

    stages: Annotated[StageParams, Field(min_length=2)] = field(default_factory=lambda: {"bm25": {}, "dense": {}})
    candidates: Count = 100
    constant: Whole = 60
    weights: dict[str, Weight] = field(default_factory=dict)

    @property
    def stage_params(self) -> StageParams:
        """The retrievers that it opens: kind -> parameters."""
        return self.stages

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.weights) - set(self.stages)):
            raise Wrong(f"weights: no stage {', '.join(unknown)} (there: {', '.join(self.stages)})")
        if not any(self.weights.get(stage, 1) for stage in self.stages):
            raise Wrong("weights: must not be 0 for every stage")


@dataclass(frozen=True)
class Params(Fusion, RagParams):
    """How to rank and what to read."""

    def __post_init__(self) -> None:
        Fusion.__post_init__(self)
        RagParams.__post_init__(self)


RetrieverParams = Fusion  # as a stage of another


class HybridRetriever(Retriever):
    """Fuses its stages' rankings."""

    stage = "hybrid"

    def __init__(self, params: Fusion, resources: Resources, where: str) -> None:
        self.params = params
        self.stages, self.models = {}, {}
        for kind, own in params.stages.items():
            stage = self.stages[kind] = open_stage(kind, own, resources, f"{where}: stages: {kind}")
            self.models |= {f"{kind} {role}": model for role, model in stage.models.items()}

    def ingest(self, view: CorpusView) -> None:
        for stage in self.stages.values():
            stage.ingest(view)

    def memory_bytes(self) -> int:
        return sum(stage.memory_bytes() for stage in self.stages.values())

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        candidates = max(depth, self.params.candidates)
        found = {kind: stage.rank(questions, view, candidates) for kind, stage in self.stages.items()}
        started_s = perf_counter()
        weights = [self.params.weights.get(kind, 1.0) for kind in found]
        rankings = zip(*(ranked.documents for ranked in found.values()), strict=True)
        fused = [fuse(ranked, weights, self.params.constant)[:depth] for ranked in rankings]
        stage_s: Counter[str] = Counter()
        for ranked in found.values():
            stage_s.update(ranked.stage_s)
        return Ranked(fused, {**stage_s, "fuse": perf_counter() - started_s})


def fuse(rankings: Sequence[list[Document]], weights: Sequence[float], constant: int) -> list[Document]:
    """All documents by the sum of weight / (constant + rank), ranks from 1; equals in order of appearance."""
    scores: dict[Document, float] = {}
    for ranked, weight in zip(rankings, weights, strict=True):
        for rank, document in enumerate(ranked, start=1):
            scores[document] = scores.get(document, 0.0) + weight / (constant + rank)
    return sorted(scores, key=lambda document: -scores[document])


estimate_cell = partial(reading_ranked, Params)  # fusing takes little beside that


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> HybridRetriever:
    return HybridRetriever(build(Fusion, params, where), resources, where)


def make(spec: SystemSpec, resources: Resources) -> RetrievalSystem:
    where = "systems.yaml: params of kind 'hybrid'"
    params = build(Params, spec.params, where)
    return RetrievalSystem(params, resources, HybridRetriever(params, resources, where))
