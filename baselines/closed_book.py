"""Closed book: the question alone, what the weights know by themselves. The floor."""

from __future__ import annotations

from dataclasses import dataclass

from baselines.base import Estimate, PlannedCell, Resources, params_of
from baselines.parts.cost import reading_documents
from baselines.parts.reading import ReaderInput, ReadingSystem
from msa_base.records import CorpusView, Question
from msa_base.specs import SystemSpec

NEEDS = ("model",)


@dataclass(frozen=True)
class Params:
    """Nothing to set."""


class ClosedBook(ReadingSystem):
    """Reads no document."""

    def select(self, questions: list[Question], view: CorpusView) -> list[ReaderInput]:
        return [ReaderInput([]) for _ in questions]


def estimate_cell(cell: PlannedCell) -> Estimate:
    return reading_documents(cell, 0)


def make(spec: SystemSpec, resources: Resources) -> ClosedBook:
    params_of(Params, spec)
    return ClosedBook(resources)
