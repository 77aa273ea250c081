"""Oracle: the reader is given the gold documents. The ceiling of any retriever before the same reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baselines.base import Estimate, PlannedCell, Resources, params_of
from baselines.parts.cost import reading_documents
from baselines.parts.reading import ReaderInput, ReadingSystem
from msa_base.errors import UserError
from msa_base.records import CorpusView, Question
from msa_base.specs import SystemSpec

NEEDS = ("model",)


@dataclass(frozen=True)
class Params:
    """Nothing to set."""


class Oracle(ReadingSystem):
    """Reads the gold documents in the order in which the gold table names them."""

    def __init__(self, resources: Resources, gold: Mapping[str, list[int]]) -> None:
        super().__init__(resources)
        self._gold = gold

    def select(self, questions: list[Question], view: CorpusView) -> list[ReaderInput]:
        inputs = []
        for name, corpus in ((question.question_id, view.documents(question)) for question in questions):
            found = [corpus.find(doc_id) for doc_id in self._gold[name]]
            if None in found:
                lost = f"document {self._gold[name][found.index(None)]}, which its corpus lacks"
                raise UserError(f"gold.parquet: question {name} names {lost}; prepare the task again")
            inputs.append(ReaderInput(found))
        return inputs


def estimate_cell(cell: PlannedCell) -> Estimate:
    """One gold document is read, as most questions have."""
    return reading_documents(cell, 1)


def make(spec: SystemSpec, resources: Resources, gold: Mapping[str, list[int]]) -> Oracle:
    params_of(Params, spec)
    return Oracle(resources, gold)
