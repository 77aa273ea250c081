"""Systems that choose documents and let the common reader answer from them: all of them but the choice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from baselines.base import Resources, System
from baselines.models import open_reader, take_usage
from configs.errors import UserError
from configs.records import Answer, CorpusView, Document, Generation, Question

ORDERS = ("best_first", "best_last")


@dataclass(frozen=True)
class RagParams:
    """What every retrieve-then-read system lets a config set."""

    read_k: int = 5  # documents the reader gets; the paper reads 1, 5 and 10
    routed_k: int = 16  # ranked ids kept for recall
    order: str = "best_last"  # where the best document stands in the prompt

    def __post_init__(self) -> None:
        if self.read_k < 1 or self.routed_k < self.read_k:
            raise UserError(f"read_k {self.read_k} and routed_k {self.routed_k}: set 1 <= read_k <= routed_k")
        if self.order not in ORDERS:
            raise UserError(f"order '{self.order}': set one of {', '.join(ORDERS)}")


@dataclass
class Selection:
    """The documents a question is read with, in prompt order, and what finding them cost."""

    documents: list[Document]
    routed_doc_ids: dict[str, list[int]] = field(default_factory=dict)
    stage_s: dict[str, float] = field(default_factory=dict)  # this question's share of its batch


def selection(ranked: Sequence[Document], stage: str, params: RagParams, stage_s: dict[str, float]) -> Selection:
    """The selection of a retriever that ranks at least ``routed_k`` documents, best first."""
    documents = list(ranked[: params.read_k])
    if params.order == "best_last":
        documents.reverse()
    routed = [document.doc_id for document in ranked[: params.routed_k]]
    return Selection(documents, {stage: routed}, stage_s)


class ReadingSystem(System):
    """Chooses documents with :meth:`select`; the reader does the rest.

    Decoding is greedy, so an equal prompt has an equal answer: it is read once, and its times are those of that
    reading. Corpora are nested, and most questions find the same documents at the next context.
    """

    def __init__(self, resources: Resources) -> None:
        self.reader = open_reader(resources.model, resources.threads)
        self._read: dict[tuple, Generation] = {}

    @abstractmethod
    def select(self, questions: list[Question], view: CorpusView) -> list[Selection]:
        """The documents of each question, in order."""

    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        """Select, read, and report both."""
        selections = self.select(questions, view)
        generations = self._generations(
            [(item.documents, question) for item, question in zip(selections, questions, strict=True)]
        )
        return [
            read_answer(question, item, generation)
            for question, item, generation in zip(questions, selections, generations, strict=True)
        ]

    def take_usage(self) -> dict[str, Any]:
        """What a served reader cost."""
        return take_usage(reader=self.reader)

    def _generations(self, pairs: list[tuple[list[Document], Question]]) -> list[Generation]:
        keys = [_prompt_key(documents, question) for documents, question in pairs]
        unread = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._read}
        if unread:
            self._read.update(zip(unread, self.reader.answer(list(unread.values())), strict=True))
        return [self._read[key] for key in keys]


def _prompt_key(documents: list[Document], question: Question) -> tuple:
    texts = tuple((document.doc_id, document.text) for document in documents)
    return (question.text, question.answer_prefix, question.max_new_tokens, texts)


def read_answer(question: Question, chosen: Selection, generation: Generation) -> Answer:
    """The answer of a question from its selection and the reader's generation."""
    before_s = sum(chosen.stage_s.values())
    return Answer(
        question.question_id,
        generation.text,
        cited_doc_ids=[document.doc_id for document in chosen.documents],
        routed_doc_ids=chosen.routed_doc_ids,
        rounds=1,
        input_tokens=generation.input_tokens,
        output_tokens=generation.output_tokens,
        first_token_s=before_s + generation.first_token_s,
        total_s=before_s + generation.total_s,
        truncated=generation.truncated,
        prompt=generation.prompt,
        stage_s={
            **chosen.stage_s,
            "read": generation.first_token_s,
            "decode": generation.total_s - generation.first_token_s,
        },
    )


class Timer:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start_s = perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds so far."""
        return perf_counter() - self._start_s
