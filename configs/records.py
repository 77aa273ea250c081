"""The records that stages exchange: documents, questions, overlays, answers and the corpus a system sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Prompt = list[int] | str | None  # token ids where the model is ours, the message where it is served, None where not recorded


@dataclass(frozen=True)
class Document:
    """One document of a corpus. ``num_tokens`` counts the wrapped document (``prompts.document``)."""

    doc_id: int
    text: str
    num_tokens: int


@dataclass(frozen=True)
class Overlay:
    """Documents that a question adds to its corpus. An added document whose id is already there replaces it in place."""

    overlay_id: str
    added: tuple[Document, ...]


@dataclass(frozen=True)
class Question:
    """What a system is asked. ``answer_prefix`` is text the answer continues (RULER's answer prefix), possibly empty."""

    question_id: str
    text: str
    answer_prefix: str
    max_new_tokens: int
    overlay_id: str | None = None


@dataclass
class Answer:
    """What a system said, what it read and what that cost.

    ``status`` is "ok" or an expected failure of this one question ("truncated_prompt", "malformed_retrieval", ...).
    ``routed_doc_ids`` maps a routing stage (a layer, "bm25", "dense") to ranked ids; ``stage_s`` maps a stage
    ("route", "fetch", "decode", ...) to seconds of this question's share of its batch. ``left_out_doc_ids`` were chosen but
    did not fit the prompt. ``prompt`` is what the answering model read; the driver audits a sample of them and keeps no other.
    """

    question_id: str
    text: str
    cited_doc_ids: list[int] = field(default_factory=list)
    routed_doc_ids: dict[str, list[int]] = field(default_factory=dict)
    rounds: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float = 0.0
    total_s: float = 0.0
    stage_s: dict[str, float] = field(default_factory=dict)
    truncated: bool = False
    status: str = "ok"
    left_out_doc_ids: list[int] = field(default_factory=list)
    prompt: Prompt = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Generation:
    """What a model wrote, from what it read, and what that cost; seconds are this text's share of its batch."""

    text: str
    input_tokens: int
    output_tokens: int
    first_token_s: float
    total_s: float
    truncated: bool = False
    prompt: Prompt = None


@dataclass(frozen=True)
class CorpusView:
    """The corpus of one cell: the first ``len(base)`` documents of the shared tail, plus each question's overlay.

    A question sees ``documents(question)`` and nothing else; systems that index the tail once must answer as they
    would on that rebuilt list (overlays are an optimisation, never information).
    """

    base: Sequence[Document]
    overlays: dict[str, Overlay]

    def overlay(self, question: Question) -> Overlay:
        """The overlay of a question; an empty one where it has none."""
        if question.overlay_id is None:
            return Overlay("", ())
        return self.overlays[question.overlay_id]

    def documents(self, question: Question) -> Iterator[Document]:
        """The question's whole corpus in order: new overlay documents first (the head), then the base with replacements."""
        overlay = self.overlay(question)
        replacement = {document.doc_id: document for document in overlay.added}
        base_ids = {document.doc_id for document in self.base}
        yield from (document for document in overlay.added if document.doc_id not in base_ids)
        for document in self.base:
            yield replacement.get(document.doc_id, document)
