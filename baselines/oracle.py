"""Oracle: the reader is given the gold documents. The ceiling of any retriever before the same reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baselines.base import Resources, read_params
from baselines.reading import ReadingSystem, Selection
from configs.errors import UserError
from configs.load import SystemSpec
from configs.records import CorpusView, Document, Question


@dataclass(frozen=True)
class Params:
    """Nothing to set."""


class Oracle(ReadingSystem):
    """Reads the gold documents in the order in which the gold table names them."""

    def __init__(self, resources: Resources, gold: Mapping[str, list[int]]) -> None:
        super().__init__(resources)
        self._gold = gold
        self._view: CorpusView | None = None
        self._base: dict[int, Document] = {}

    def ingest(self, view: CorpusView) -> None:
        """Index the base by id."""
        self._view, self._base = view, {document.doc_id: document for document in view.base}

    def select(self, questions: list[Question], view: CorpusView) -> list[Selection]:
        """The gold documents, as the question's overlay has them."""
        if view is not self._view:
            self.ingest(view)
        return [Selection(self._gold_documents(question, view)) for question in questions]

    def _gold_documents(self, question: Question, view: CorpusView) -> list[Document]:
        added = {document.doc_id: document for document in view.overlay(question).added}
        found = []
        for doc_id in self._gold[question.question_id]:
            document = added.get(doc_id) or self._base.get(doc_id)
            if document is None:
                raise UserError(
                    f"gold.parquet: question {question.question_id} names document {doc_id}, which its corpus lacks; prepare the task again"
                )
            found.append(document)
        return found


def make(spec: SystemSpec, resources: Resources, gold: Mapping[str, list[int]]) -> Oracle:
    """Open the reader with the gold table."""
    read_params(Params, spec.params, "systems.yaml: params of kind 'oracle'")
    return Oracle(resources, gold)
