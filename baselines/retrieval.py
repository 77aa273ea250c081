"""Retrieval, then reading: what a retriever offers, how one names another, and the system that reads what it ranks best.

A module of retrieval has ``make``, as every system has, and ``open_retriever(params, resources, where) -> Retriever``, so that
hybrid and rerank can name it as a stage of theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from baselines.base import Resources, load_module
from baselines.models import take_usage
from baselines.reading import RagParams, ReadingSystem, Selection, selection
from configs.errors import UserError
from configs.records import CorpusView, Document, Question


@dataclass
class Ranked:
    """The best documents of each question, best first, and the seconds of each stage for all of them together."""

    documents: list[list[Document]]
    stage_s: dict[str, float] = field(default_factory=dict)


class Retriever(ABC):
    """Ranks the documents of each question's corpus."""

    stage: str  # the name of its ranking among an answer's routed ids

    @abstractmethod
    def ingest(self, view: CorpusView) -> None:
        """Do what a view costs once."""

    def prepare(self, questions: Sequence[Question], view: CorpusView) -> None:
        """Do what the overlays of some questions cost: they stand for indexed documents and are no question's latency."""

    @abstractmethod
    def rank(self, questions: list[Question], view: CorpusView, depth: int) -> Ranked:
        """The ``depth`` best documents of each question (fewer where its corpus has fewer); of equals the earlier first."""

    def memory_bytes(self) -> int:
        """Bytes kept for the view beside the index directory."""
        return 0

    def take_usage(self) -> dict[str, Any]:
        """What its served models cost since this was last asked, by role."""
        return {}


class RetrievalSystem(ReadingSystem):
    """Reads the documents that a retriever ranks best."""

    def __init__(self, params: RagParams, resources: Resources, retriever: Retriever) -> None:
        super().__init__(resources)
        self.params, self.retriever = params, retriever
        self._view: CorpusView | None = None

    def ingest(self, view: CorpusView) -> None:
        """Make the retriever ready for a view."""
        self.retriever.ingest(view)
        self._view = view

    def memory_bytes(self, view: CorpusView) -> int:
        """What the retriever keeps for the view."""
        return self.retriever.memory_bytes()

    def take_usage(self) -> dict[str, Any]:
        """What served models cost, the reader among them."""
        return {**take_usage(reader=self.reader), **self.retriever.take_usage()}

    def select(self, questions: list[Question], view: CorpusView) -> list[Selection]:
        """Rank for all questions; each bears its share of the time."""
        if view is not self._view:
            self.ingest(view)
        self.retriever.prepare(questions, view)
        ranked = self.retriever.rank(questions, view, self.params.routed_k)
        share_s = {stage: seconds / len(questions) for stage, seconds in ranked.stage_s.items()}
        return [selection(documents, self.retriever.stage, self.params, share_s) for documents in ranked.documents]


def open_stage(kind: str, params: dict[str, Any], resources: Resources, where: str) -> Retriever:
    """The retriever of the module that ``kind`` names.

    Raises:
        UserError: no such module, or it retrieves nothing; ``where`` leads the message.
    """
    module = load_module(kind, where)
    if not hasattr(module, "open_retriever"):
        raise UserError(f"{where}: kind '{kind}' ranks no documents; name a module with open_retriever, such as bm25")
    return module.open_retriever(params, resources, where)
