"""Closed book: the question alone, what the weights know by themselves. The floor."""

from __future__ import annotations

from dataclasses import dataclass

from baselines.base import Resources, read_params
from baselines.reading import ReadingSystem, Selection
from configs.load import SystemSpec
from configs.records import CorpusView, Question


@dataclass(frozen=True)
class Params:
    """Nothing to set."""


class ClosedBook(ReadingSystem):
    """Reads no document."""

    def select(self, questions: list[Question], view: CorpusView) -> list[Selection]:
        """No documents for anyone."""
        return [Selection([]) for _ in questions]


def make(spec: SystemSpec, resources: Resources) -> ClosedBook:
    """Open the reader."""
    read_params(Params, spec.params, "systems.yaml: params of kind 'closed_book'")
    return ClosedBook(resources)
