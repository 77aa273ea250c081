"""Systems that choose documents and let the common reader answer from them: all of them but the choice."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from baselines.base import CellStatus, Resources, System
from baselines.parts.models import ReadingModel, open_reader
from msa_base.records import Answer, CorpusView, Document, Generation, Question
from msa_base.replies import OK, UNFINISHED, said
from msa_base.validate import Count, Wrong


@dataclass(frozen=True)
class RagParams:
    """What every retrieve-then-read system lets a config set."""

    read_k: Count = 5  # documents the reader gets; the paper reads 1, 5 and 10
    routed_k: Count = 16  # ranked ids kept for recall
    order: Literal["best_first", "best_last"] = "best_last"  # where the best document stands in the prompt

    def __post_init__(self) -> None:
        if self.routed_k < self.read_k:
            raise Wrong(f"read_k {self.read_k} and routed_k {self.routed_k}: set read_k <= routed_k")

    def in_order(self, ranked: list[Document]) -> list[Document]:
        """Documents, best first, as they stand in the prompt."""
        return ranked[::-1] if self.order == "best_last" else ranked


@dataclass
class ReaderInput:
    """The documents that a question is read with, in prompt order, and what finding them cost."""

    documents: list[Document]
    routed_doc_ids: dict[str, list[int]] = field(default_factory=dict)
    stage_s: dict[str, float] = field(default_factory=dict)  # this question's share of its batch


class ReadingSystem(System):
    """Chooses documents with :meth:`select`; the reader does the rest.

    Decoding is greedy, so an equal prompt has an equal answer: it is read once, and its times are those of that
    reading. Corpora are nested, and most questions find the same documents at the next context.
    """

    def __init__(self, resources: Resources, reader: ReadingModel | None = None) -> None:
        self.reader = reader or open_reader(resources.model, resources.threads)
        self.models = {"reader": self.reader}
        self._read: dict[tuple, Generation] | None = {}  # None keeps none
        self._view: CorpusView | None = None

    def ingest(self, view: CorpusView) -> None:
        self._view = view

    @abstractmethod
    def select(self, questions: list[Question], view: CorpusView) -> list[ReaderInput]:
        """The documents of each question, in order; ``view`` is the ingested one."""

    def answer(self, questions: list[Question], view: CorpusView) -> list[Answer]:
        if view is not self._view:
            self.ingest(view)
        inputs = self.select(questions, view)
        pairs = [(found.documents, question) for found, question in zip(inputs, questions, strict=True)]
        keys = [_prompt_key(*pair) for pair in pairs]
        read = {} if self._read is None else self._read
        unread = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in read}
        if unread:
            read.update(zip(unread, self.reader.answer(list(unread.values())), strict=True))
        generations = [read[key] for key in keys]
        return [read_answer(*item) for item in zip(questions, inputs, generations, strict=True)]


def _prompt_key(documents: list[Document], question: Question) -> tuple:
    texts = tuple((document.doc_id, document.text) for document in documents)
    return (question.text, question.answer_prefix, question.max_new_tokens, texts)


def read_answer(question: Question, found: ReaderInput, generation: Generation) -> Answer:
    """The answer of a question from what was read and the reader's generation."""
    before_s = sum(found.stage_s.values())
    reply = said(generation.text)  # readers of this project have done it; those of others may not have
    status = UNFINISHED if reply.unfinished and generation.status == OK else generation.status
    stage_s = {"read": generation.first_token_s, "decode": generation.total_s - generation.first_token_s}
    return Answer(
        question.question_id,
        reply.text,
        cited_doc_ids=[document.doc_id for document in found.documents],
        routed_doc_ids=found.routed_doc_ids,
        rounds=1,
        input_tokens=generation.input_tokens,
        output_tokens=generation.output_tokens,
        first_token_s=before_s + generation.first_token_s,
        total_s=before_s + generation.total_s,
        truncated=generation.truncated,
        status=status,
        prompt=generation.prompt,
        stage_s=found.stage_s | stage_s,
    )


class TimeLimit:
    """The profile's limit for a cell (None refuses nothing), and the time that a cell has had.

    A system that makes many calls one after another refuses a cell that would pass it.
    """

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self.restart()

    def restart(self) -> None:
        self._started_s = perf_counter()

    def check(self, calls_left: int, call_s: float) -> None:
        """Raise `timeout` where ``calls_left`` calls of ``call_s`` seconds each would end behind the limit."""
        if self.limit_s is None:
            return
        planned_s = perf_counter() - self._started_s + calls_left * call_s
        if planned_s > self.limit_s:
            raise CellStatus(
                "timeout",
                f"{calls_left:,} more calls at {call_s:.3g} s each: about {planned_s:,.0f} s in all,"
                f" beyond the profile's limit of {self.limit_s:,.0f}",
            )
