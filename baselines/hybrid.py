"""RAG with hybrid retrieval: two rankings or more, fused by reciprocal rank (Cormack et al. 2009), then the common reader.

A document's score is the sum over the stages of weight / (constant + its rank there); one that a stage does not have among
its ``candidates`` gets nothing from it. Nothing is changed but that equal scores keep the order of the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from baselines.base import Resources, read_params
from baselines.reading import RagParams, Timer
from baselines.retrieval import Ranked, RetrievalSystem, Retriever, open_stage
from configs.errors import UserError
from configs.load import SystemSpec
from configs.records import CorpusView, Document, Question


@dataclass(frozen=True)
class Fusion:
    """``stages`` maps kinds of retrieval to their parameters; ``weights`` are 1 where none is given."""

    stages: dict[str, dict[str, Any]] = field(default_factory=lambda: {"bm25": {}, "dense": {}})
    candidates: int = 100
    constant: int = 60
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.stages) < 2 or self.candidates < 1 or self.constant < 0:
            raise UserError("hybrid: name two stages or more, and set candidates >= 1 and constant >= 0")
        if unknown := sorted(set(self.weights) - set(self.stages)):
            raise UserError(f"weights: no stage {', '.join(unknown)} (there: {', '.join(self.stages)})")


@dataclass(frozen=True)
class Params(Fusion, RagParams):
    """How to rank and what to read."""

    def __post_init__(self) -> None:
        Fusion.__post_init__(self)
        RagParams.__post_init__(self)


class HybridRetriever(Retriever):
    """Fuses its stages' rankings."""

    stage = "hybrid"

    def __init__(self, params: Fusion, resources: Resources, where: str) -> None:
        self.params = params
        self.stages = {
            kind: open_stage(kind, own, resources, f"{where}: stages: {kind}") for kind, own in params.stages.items()
        }

    def ingest(self, view: CorpusView) -> None:
        """Make every stage ready."""
        for stage in self.stages.values():
            stage.ingest(view)

    def prepare(self, questions: Sequence[Question], view: CorpusView) -> None:
        """What overlays cost each stage."""
        for stage in self.stages.values():
            stage.prepare(questions, view)

    def memory_bytes(self) -> int:
        """What the stages keep."""
        return sum(stage.memory_bytes() for stage in self.stages.values())

    def take_usage(self) -> dict[str, Any]:
        """What the stages' served models cost."""
        return {role: usage for stage in self.stages.values() for role, usage in stage.take_usage().items()}

    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        """Rank by every stage, and fuse."""
        timer = Timer()
        candidates = max(depth, self.params.candidates)
        found = {kind: stage.rank(questions, view, candidates) for kind, stage in self.stages.items()}
        weights = [self.params.weights.get(kind, 1.0) for kind in found]
        rankings = zip(*(ranked.documents for ranked in found.values()), strict=True)
        fused = [fuse(ranked, weights, self.params.constant)[:depth] for ranked in rankings]
        stage_s: dict[str, float] = {}
        for ranked in found.values():
            for name, seconds in ranked.stage_s.items():
                stage_s[name] = stage_s.get(name, 0.0) + seconds
        return Ranked(fused, {**stage_s, "fuse": max(0.0, timer.elapsed_s - sum(stage_s.values()))})


def fuse(rankings: Sequence[list[Document]], weights: Sequence[float], constant: int) -> list[Document]:
    """All documents of some rankings by the sum of weight / (constant + rank), ranks from 1; equals in order of appearance."""
    scores: dict[Document, float] = {}
    for ranked, weight in zip(rankings, weights, strict=True):
        for rank, document in enumerate(ranked, start=1):
            scores[document] = scores.get(document, 0.0) + weight / (constant + rank)
    return sorted(scores, key=lambda document: -scores[document])


def open_retriever(params: dict[str, Any], resources: Resources, where: str) -> HybridRetriever:
    """The retriever as a stage of another."""
    return HybridRetriever(read_params(Fusion, params, where), resources, where)


def make(spec: SystemSpec, resources: Resources) -> RetrievalSystem:
    """Open the stages and the reader."""
    where = "systems.yaml: params of kind 'hybrid'"
    params = read_params(Params, spec.params, where)
    return RetrievalSystem(params, resources, HybridRetriever(params, resources, where))
