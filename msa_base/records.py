"""The records that stages exchange: documents, questions, overlays, answers and the corpus a system sees."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Annotated

import numpy as np
from pydantic import Field

from msa_base.validate import Distinct, Text

# token ids where the model is ours, the message where it is served, None where not recorded
Prompt = list[int] | str | None
Number = Annotated[int, Field(ge=0)]
Spent = Annotated[float, Field(ge=0)]  # seconds


@dataclass(frozen=True)
class Document:
    """One document of a corpus. ``num_tokens`` counts the wrapped document (``prompts.document``)."""

    doc_id: int
    text: str
    num_tokens: int


@dataclass(frozen=True)
class Overlay:
    """Documents that a question adds to its corpus. One whose id is already there replaces that document in place."""

    overlay_id: str
    added: tuple[Document, ...]


NO_OVERLAY = Overlay("", ())


@dataclass(frozen=True)
class Question:
    """What a system is asked. ``answer_prefix`` is text that the answer continues (RULER's), possibly empty."""

    question_id: str
    text: str
    answer_prefix: str
    max_new_tokens: int
    overlay_id: str | None = None


@dataclass
class Answer:
    """What a system said, what it read and what that cost.

    ``status`` is "ok" or an expected failure of this one question ("truncated_prompt", "malformed_retrieval", those of
    msa_base.replies).
    ``routed_doc_ids`` maps a routing stage (a layer, "bm25", "dense") to ranked ids; ``stage_s`` maps a stage ("route",
    "fetch", "decode", ...) to seconds of this question's share of its batch. ``left_out_doc_ids`` were chosen but did
    not fit the prompt. ``prompt`` is what the answering model read; the driver audits a sample of them and keeps no
    other.
    """

    question_id: Text
    text: str
    cited_doc_ids: list[Number] = field(default_factory=list)
    routed_doc_ids: dict[Text, Annotated[list[Number], Distinct]] = field(default_factory=dict)
    rounds: Number = 0
    input_tokens: Number = 0
    output_tokens: Number = 0
    first_token_s: Spent = 0.0
    total_s: Spent = 0.0
    stage_s: dict[Text, Spent] = field(default_factory=dict)
    truncated: bool = False
    status: Text = "ok"
    left_out_doc_ids: list[Number] = field(default_factory=list)
    prompt: Prompt = field(default=None, repr=False, compare=False)


def without_costs(answers: Sequence[Answer]) -> list[tuple]:
    """What answers say, not what they cost: the fields that repeat when a system is run again."""
    said = attrgetter("question_id", "text", "cited_doc_ids", "routed_doc_ids", "rounds", "truncated", "status")
    return list(map(said, answers))


@dataclass(frozen=True)
class Generation:
    """What a model wrote, without its thinking, from what it read, and what that cost.

    Seconds are this text's share of its batch. ``status`` is not "ok" where it is no whole answer (msa_base.replies);
    ``whole`` is the text with its thinking, where it had any.
    """

    text: str
    input_tokens: int
    output_tokens: int
    first_token_s: float
    total_s: float
    truncated: bool = False
    prompt: Prompt = None
    status: str = "ok"
    whole: str | None = None


def tie_order(question: str, doc_ids: np.ndarray) -> np.ndarray:
    """Random numbers [N] that order documents which a question scores alike, by question and id, never by place.

    No two documents share a number. Source: the mixer of SplitMix64 (Steele, Lea and Flood 2014).
    """
    seed = int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest(), "little")
    mixed = np.asarray(doc_ids, np.int64).astype(np.uint64) ^ np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class LayeredCorpus(Sequence[Document]):
    """One question's corpus: an overlay laid over the tail, with nothing copied.

    A new document of the overlay stands at a random row of the tail, drawn by its id, so that no place tells it from
    the tail's. One that replaces a document of the tail stands in its row: ``replaced`` holds it by that row.
    """

    base: Sequence[Document]
    overlay: Overlay
    rows: Mapping[int, int]  # of the tail, by document id
    base_ids: np.ndarray  # [rows] int64
    new: tuple[Document, ...]  # by place
    new_places: np.ndarray  # [new] int64, ascending
    replaced: dict[int, Document]

    @classmethod
    def lay(cls, overlay: Overlay, view: CorpusView) -> LayeredCorpus:
        """Lay an overlay over a view's base."""
        new = [item for item in overlay.added if item.doc_id not in view.rows]
        replaced = {view.rows[item.doc_id]: item for item in overlay.added if item.doc_id in view.rows}
        drawn = tie_order("places", np.asarray([item.doc_id for item in new], np.int64))
        slots = (drawn % np.uint64(len(view.base) + 1)).astype(np.int64)  # the row that it stands before
        order = np.lexsort((drawn, slots))
        places = slots[order] + np.arange(len(new))
        return cls(view.base, overlay, view.rows, view.base_ids, tuple(new[n] for n in order), places, replaced)

    @property
    def added(self) -> list[Document]:
        """The overlay's documents: the new ones, then those that replace."""
        return [*self.new, *self.replaced.values()]

    @property
    def added_places(self) -> np.ndarray:
        """The places of :attr:`added`."""
        return np.concatenate([self.new_places, self.base_places(np.asarray([*self.replaced], np.int64))])

    def base_places(self, rows: np.ndarray) -> np.ndarray:
        """The places of rows of the tail."""
        slots = self.new_places - np.arange(len(self.new))
        return rows + np.searchsorted(slots, rows, side="right")

    def doc_ids(self, places: np.ndarray) -> np.ndarray:
        """The ids of the documents at some places."""
        before = np.searchsorted(self.new_places, places)  # new documents
        is_new = np.isin(places, self.new_places)
        found = np.empty(len(places), np.int64)
        found[~is_new] = self.base_ids[(places - before)[~is_new]]
        found[is_new] = [self.new[n].doc_id for n in before[is_new]]
        return found

    def find(self, doc_id: int) -> Document | None:
        """The document of an id as the question sees it; None where its corpus has none."""
        if (row := self.rows.get(doc_id)) is not None:
            return self.replaced.get(row) or self.base[row]
        return next((document for document in self.new if document.doc_id == doc_id), None)

    def __len__(self) -> int:
        return len(self.new) + len(self.base)

    def __getitem__(self, place: int | slice) -> Document | list[Document]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        before = int(np.searchsorted(self.new_places, place))
        if before < len(self.new) and self.new_places[before] == place:
            return self.new[before]
        return self.replaced.get(place - before) or self.base[place - before]

    def __iter__(self) -> Iterator[Document]:
        new, places = iter(self.new), set(self.new_places.tolist())
        base = enumerate(self.base)
        for place in range(len(self)):
            if place in places:
                yield next(new)
            else:
                row, document = next(base)
                yield self.replaced.get(row, document)


@dataclass(frozen=True)
class CorpusView:
    """The corpus of one cell: the first ``len(base)`` documents of the shared tail, plus each question's overlay.

    A question sees ``documents(question)`` and nothing else. Systems that index the tail once must answer as they would
    on that list (overlays are an optimisation, never information).
    """

    base: Sequence[Document]
    overlays: dict[str, Overlay]
    _corpora: dict[str, LayeredCorpus] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def rows(self) -> dict[int, int]:
        """The row of each document of the base, by its id."""
        return {doc_id: row for row, doc_id in enumerate(self.base_ids.tolist())}

    @cached_property
    def base_ids(self) -> np.ndarray:
        """The ids of the base by row."""
        return np.fromiter((document.doc_id for document in self.base), np.int64, len(self.base))

    def overlay(self, question: Question) -> Overlay:
        """The overlay of a question; an empty one where it has none."""
        return NO_OVERLAY if question.overlay_id is None else self.overlays[question.overlay_id]

    def corpus(self, overlay: Overlay) -> LayeredCorpus:
        """An overlay laid over the base; the same object each time."""
        found = self._corpora.get(overlay.overlay_id)
        if found is None:
            found = self._corpora[overlay.overlay_id] = LayeredCorpus.lay(overlay, self)
        return found

    def documents(self, question: Question) -> LayeredCorpus:
        """The question's whole corpus."""
        return self.corpus(self.overlay(question))
