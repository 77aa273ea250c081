"""Memory store: an agent keeps a text as short facts, updates them as it reads on, and answers from those it recalls.

The idea is that of Mem0 (mem0ai/mem0, arXiv 2504.19413); the algorithm is this project's own:

1. Extract. Each document gives statements that stand by themselves. ``agent: model`` asks the entry's model once a
   document (JSON). ``agent: rules`` takes the sentences that name two entities or more (baselines.parts.extraction),
   with the document's title before them.
2. Store, in the order of the documents. ``agent: model`` shows the model a document's statements and the ``neighbours``
   memories nearest to each. It says for each statement whether to add it, to update or delete one of those memories, or
   to do nothing (JSON). ``agent: rules`` keeps the fuller of two statements about the same entities where the words of
   one contain the other's. It deletes nothing: words alone do not tell a changed value from another value.
3. Recall. First come the memories nearest to the question, down to ``nearness`` of the nearest one's cosine, and the
   nearest about each name in the question that none of them holds. Then come, ``hops`` - 1 times, those about each name
   that the first ``hop_memories`` brought up and the question lacks. The common reader reads ``read_k`` of them.

As in Mem0: extraction, the four operations against the ten nearest memories, recall by vectors, an answer from memories
alone. Different: no running summary (documents are no conversation), recall in hops, the reader and its prompt.
``phrases: words`` recalls by bags of words where no embedder of short statements is at hand, ``both`` by the two
together.

A store of rules does not depend on the order of documents, but one made by a model does. So every overlay pays for a
store of its own; only the extraction is made once a document.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from time import perf_counter
from typing import Literal

import numpy as np

from baselines.base import Resources, params_of
from baselines.parts.extraction import (
    LEFT_OUT,
    NO_LIST,
    ask_for_lists,
    entity_spans,
    normalised,
    sentences,
    split_title,
)
from baselines.parts.models import ReadingModel, open_embedder
from baselines.parts.phrases import Kind, Phrases, open_encoder
from baselines.parts.reading import RagParams, ReaderInput, ReadingSystem, TimeLimit
from baselines.parts.retrieval import KEPT_OVERLAYS
from msa_base.records import CorpusView, Document, LayeredCorpus, Question, tie_order
from msa_base.replies import Losses
from msa_base.specs import SystemSpec
from msa_base.validate import Count, Share

NEEDS = ("model", "index")
PLANS_TIME = True  # a cell's status depends on the profile's limit
REPLY_TOKENS = 1024
EVENTS = ("ADD", "UPDATE", "DELETE", "NONE")
UNDONE, UNTOLD = "operations_left_undone", "facts_without_operation"  # what is lost of an update
NUMBER_AS_TEXT, NO_TEXT = "numbers_as_text", "update_without_text"  # what is repaired of it
BATCH = 16  # documents that a model extracts from at a time

EXTRACT_PROMPT = """List the facts that a text states, each as one short sentence that stands by itself: names in \
place of pronouns, numbers
and dates as they are. Reply with JSON alone, in the form of this example.
Text: Radio City was started on 3 July 2001. It plays Hindi songs.
Reply: {{"facts": ["Radio City was started on 3 July 2001.", "Radio City plays Hindi songs."]}}
Text: {text}
Reply: """
UPDATE_PROMPT = """You keep a memory of facts. For each new fact say what to do: ADD it, UPDATE a memory with it \
(give the memory's number and its new
text), DELETE a memory that it shows to be wrong (give its number; the fact itself is then added), or NONE where it \
is known already.
Reply with JSON alone, in the form of this example.
Memories: {{"4": "Radio City plays English songs."}}
New facts: {{"0": "Radio City plays English and Hindi songs.", "1": "Radio City was started in 2001."}}
Reply: {{"operations": [{{"fact": 0, "event": "UPDATE", "memory": 4, "text": "Radio City plays English and Hindi \
songs."}}, {{"fact": 1, "event": "ADD"}}]}}
Memories: {memories}
New facts: {facts}
Reply: """


@dataclass(frozen=True)
class Params(RagParams):
    """Who extracts and updates, and how far recall goes."""

    agent: Literal["model", "rules"] = "model"
    phrases: Kind = "model"
    neighbours: Count = 10
    hops: Count = 2
    hop_memories: Count = 2  # recalled memories whose names the next hop follows
    nearness: Share = 0.9  # a memory less near to the question than this share of the nearest is not read


@dataclass
class Store:
    """Memories by number: their text, and the documents that they come from."""

    texts: dict[int, str] = field(default_factory=dict)
    sources: dict[int, list[int]] = field(default_factory=dict)
    next: int = 0

    def add(self, text: str, source: int) -> None:
        self.texts[self.next], self.sources[self.next] = text, [source]
        self.next += 1

    def update(self, number: int, text: str, source: int) -> None:
        """Another text for a memory, which now comes from one more document."""
        self.texts[number] = text
        if source not in self.sources[number]:
            self.sources[number].append(source)

    def delete(self, number: int) -> None:
        del self.texts[number], self.sources[number]


class RuleAgent:
    """Extraction and updates by rule; see the module's docstring."""

    def extract(self, texts: Sequence[str]) -> list[list[str]]:
        return [list(_statements(text)) for text in texts]

    def store(self, documents: Iterable[tuple[Document, list[str]]], phrases: Phrases) -> Store:
        """The store of some documents with their statements."""
        about: dict[frozenset[str], list[tuple[frozenset[str], str, int]]] = {}
        for document, statements in documents:
            for statement in statements:
                words = frozenset(normalised(statement).split())
                about.setdefault(_names(statement), []).append((words, statement, document.doc_id))
        store = Store()
        for held in about.values():
            fullest: list[tuple[frozenset[str], int]] = []
            for words, statement, source in sorted(held, key=lambda item: (-len(item[0]), item[1])):
                known = next((number for other, number in fullest if words <= other), None)
                if known is None:
                    fullest.append((words, store.next))
                    store.add(statement, source)
                else:
                    store.update(known, store.texts[known], source)
        return store


class ModelAgent:
    """Extraction and updates by a model; what a reply does not say as it was asked to is lost, and counted in
    ``losses``. ``limit`` refuses a cell too slow.
    """

    def __init__(self, reader: ReadingModel, params: Params, limit: TimeLimit) -> None:
        self.reader, self.params, self.limit = reader, params, limit
        self.losses = Losses()
        self._lost_of: dict[str, Counter[str]] = {}  # of extraction, by text

    @property
    def failures(self) -> int:
        """Replies, facts and operations that were lost."""
        return self.losses.lost.total()

    def extract(self, texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = []
        for start in range(0, len(texts), BATCH):
            started = perf_counter()
            batch = texts[start : start + BATCH]
            messages = [EXTRACT_PROMPT.format(text=text) for text in batch]
            for text, facts in zip(batch, ask_for_lists(self.reader, messages, "facts", REPLY_TOKENS), strict=True):
                found.append([fact for fact in facts or [] if isinstance(fact, str) and fact.strip()])
                lost = {NO_LIST: 1} if facts is None else {LEFT_OUT: len(facts) - len(found[-1])}
                self._lost_of[text] = Counter({kind: count for kind, count in lost.items() if count})
            left = len(texts) - start - len(messages)
            self.limit.check(left, (perf_counter() - started) / len(messages))
        return found

    def count_extraction(self, texts: Iterable[str]) -> None:
        """Count what was lost of some texts that were extracted from, now or before."""
        for text in dict.fromkeys(texts):
            self.losses.lost.update(self._lost_of.get(text, ()))

    def store(self, documents: Iterable[tuple[Document, list[str]]], phrases: Phrases) -> Store:
        """The store of some documents with their statements, one update after the other."""
        store, waiting = Store(), [(document, facts) for document, facts in documents if facts]
        for place, (document, facts) in enumerate(waiting):
            started = perf_counter()
            near = self._near(store, facts, phrases)
            message = UPDATE_PROMPT.format(
                memories=json.dumps({str(number): store.texts[number] for number in near}, ensure_ascii=False),
                facts=json.dumps({str(number): fact for number, fact in enumerate(facts)}, ensure_ascii=False),
            )
            operations = ask_for_lists(self.reader, [message], "operations", REPLY_TOKENS)[0]
            if operations is None:
                self.losses.lost[NO_LIST] += 1
            told = {_apply(it, store, facts, near, document.doc_id, self.losses) for it in operations or ()}
            self.losses.lost.update({UNTOLD: untold} if (untold := len(facts) - len(told - {None})) else {})
            self.limit.check(len(waiting) - place - 1, perf_counter() - started)
        return store

    def _near(self, store: Store, facts: list[str], phrases: Phrases) -> list[int]:
        numbers = list(store.texts)
        if not numbers:
            return []
        of, to = phrases.numbers(facts), phrases.numbers([store.texts[number] for number in numbers])
        scores = phrases.vectors[of] @ phrases.vectors[to].T
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.params.neighbours]
        return sorted({numbers[place] for place in best.ravel()})


def _apply(
    operation: object, store: Store, facts: list[str], near: list[int], source: int, losses: Losses
) -> int | None:
    """Do what a model said of one fact, and give the fact's number. What names no fact, no event, or a memory that it
    was not shown, is left undone and counted.
    """
    asked = operation if isinstance(operation, dict) else {}
    event = asked.get("event")
    event = event.strip().upper() if isinstance(event, str) else None
    place, memory = _number(asked.get("fact"), losses), _number(asked.get("memory"), losses)
    if place is None or not 0 <= place < len(facts) or event not in EVENTS:
        losses.lost[UNDONE] += 1
        return None
    if event in ("UPDATE", "DELETE") and (memory not in near or memory not in store.texts):
        losses.lost[UNDONE] += 1
    elif event == "UPDATE":
        text = asked.get("text")
        given = isinstance(text, str) and bool(text.strip())
        losses.repaired.update([] if given else [NO_TEXT])
        store.update(memory, text if given else facts[place], source)
    elif event != "NONE":
        if event == "DELETE":
            store.delete(memory)
        store.add(facts[place], source)
    return place


def _number(value: object, losses: Losses) -> int | None:
    """A number of a fact or a memory, also where it is written as text or with a decimal point."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int):
        return value
    found = re.fullmatch(r"\s*(\d{1,9})(\.0*)?\s*", str(value), re.ASCII)
    losses.repaired.update([NUMBER_AS_TEXT] if found else [])
    return int(found[1]) if found else None


def _any_of(text: str, sources: list[int]) -> int:
    """One of a memory's documents, whichever was read first."""
    return sources[int(tie_order(text, np.asarray(sources)).argmin())]


def _statements(text: str) -> Iterable[str]:
    title, body = split_title(text)
    for sentence in sentences(body if title else text):
        if len(_names(sentence)) + bool(title) >= 2:
            yield f"{title}: {sentence}" if title else sentence


def _names(statement: str) -> frozenset[str]:
    return frozenset(normalised(statement[start:end]) for start, end in entity_spans(statement, set())) - {""}


def _holds(text: str, name: str) -> bool:
    return f" {name} " in f" {normalised(text)} "


class MemoryStore(ReadingSystem):
    """Extracts from a document once; an overlay's store is made when first asked."""

    reads_notes = True

    def __init__(self, params: Params, resources: Resources) -> None:
        super().__init__(resources)
        self.params = params
        self.limit = TimeLimit(resources.cell_limit_s)
        self.agent = RuleAgent() if params.agent == "rules" else ModelAgent(self.reader, params, self.limit)
        self._embedder = open_embedder(resources.index_model, resources.threads) if resources.index_model else None
        self.encoder = open_encoder(params.phrases, self._embedder, "systems.yaml: params of kind 'memory_store'")
        self.models = {"reader": self.reader, "embedder": self._embedder}
        if isinstance(self.agent, ModelAgent):
            self.models["store"] = self.agent.losses
        self._phrases = Phrases(self.encoder)
        self._extracted: dict[str, list[str]] = {}

    def ingest(self, view: CorpusView) -> None:
        super().ingest(view)
        self.limit.restart()
        texts = [document.text for document in view.base]
        texts += [document.text for overlay in view.overlays.values() for document in overlay.added]
        new = [text for text in dict.fromkeys(texts) if text not in self._extracted]
        self._extracted.update(zip(new, self.agent.extract(new), strict=True))
        if isinstance(self.agent, ModelAgent):
            self.agent.count_extraction(texts)
        self._stores = lru_cache(KEPT_OVERLAYS)(self._make)

    def memory_bytes(self, view: CorpusView) -> int:
        """Bytes of the texts and vectors of all memories met so far."""
        return self._phrases.vectors.nbytes + sum(len(text.encode()) for text in self._phrases.texts)

    def select(self, questions: list[Question], view: CorpusView) -> list[ReaderInput]:
        stores = [self._stores(view.documents(question)) for question in questions]
        inputs = []
        for question, (memories, vectors) in zip(questions, stores, strict=True):
            started_s = perf_counter()
            read, recalled = self._recall(question.text, memories, vectors) if memories else ([], [])
            sources = list(dict.fromkeys(memory.doc_id for memory in recalled))
            stage_s = {"retrieve": perf_counter() - started_s}
            inputs.append(ReaderInput(self.params.in_order(read), {"memory_store": sources}, stage_s))
        return inputs

    def _recall(
        self, question: str, memories: list[Document], vectors: np.ndarray
    ) -> tuple[list[Document], list[Document]]:
        """The memories to read, each hop's finds behind what led to them, and ``routed_k`` in the order of recall."""
        near, scores = self._nearest(question, vectors)
        close = [place for place in near if scores[place] >= self.params.nearness * scores[near[0]]]
        for name in sorted(_names(question)):
            holding = [place for place in near if _holds(memories[place].text, name)]
            if not set(holding) & set(close):
                close += holding[:1]
        front, known_text = close[: self.params.hop_memories], question
        chain = list(front)
        for _ in range(self.params.hops - 1):
            texts = [memories[place].text for place in front]
            found = [place for text in texts for place in self._about(text, known_text, memories, vectors)]
            known_text = " ".join([known_text, *texts])
            front = [place for place in dict.fromkeys(found) if place not in close][: self.params.hop_memories]
            chain += front
        read = list(dict.fromkeys([*chain, *close]))[: self.params.read_k]
        recalled = list(dict.fromkeys([*read, *near]))[: self.params.routed_k]
        return [memories[place] for place in read], [memories[place] for place in recalled]

    def _about(self, text: str, known_text: str, memories: list[Document], vectors: np.ndarray) -> Iterator[int]:
        """The nearest memories about each name that a memory has and the question, or an earlier hop, has not."""
        for name in sorted(_names(text)):
            if not _holds(known_text, name) and not name.replace(" ", "").isdigit():
                near, _ = self._nearest(name, vectors)
                yield from (place for place in near if _holds(memories[place].text, name))

    def _nearest(self, text: str, vectors: np.ndarray) -> tuple[list[int], np.ndarray]:
        """The ``routed_k`` nearest memories, of equals the first in their order, and how near each memory is."""
        scores = np.round(vectors @ self.encoder.questions([text])[0], 6)
        return np.argsort(-scores, kind="stable")[: self.params.routed_k].tolist(), scores

    def _make(self, documents: LayeredCorpus) -> tuple[list[Document], np.ndarray]:
        store = self.agent.store(((document, self._extracted[document.text]) for document in documents), self._phrases)
        # equals are recalled in an order of their texts' digests, and a memory of several documents cites any of them
        items = [(text, _any_of(text, store.sources[number])) for number, text in store.texts.items()]
        items.sort(key=lambda item: hashlib.sha256(item[0].encode()).digest())
        numbers = self._phrases.numbers([text for text, _ in items])
        return [Document(source, text, 0) for text, source in items], self._phrases.vectors[numbers]


def make(spec: SystemSpec, resources: Resources) -> MemoryStore:
    return MemoryStore(params_of(Params, spec), resources)
