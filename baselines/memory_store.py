"""Memory store: an agent keeps a text as short facts, updates them as it reads on, and answers from those that a question recalls.

Source: the family of Mem0 (mem0ai/mem0, arXiv 2504.19413). The algorithm here is this project's own:

1. Extract. Each document gives statements that stand by themselves. ``agent: model`` asks the entry's model once a document (JSON);
   ``agent: rules`` takes the sentences that name two entities or more (baselines.extraction), with the document's title before them.
2. Store, in the order of the documents. ``agent: model`` shows the model a document's statements and the ``neighbours`` memories nearest
   to each, and it says for each statement whether to add it, to update or delete one of those memories, or to do nothing (JSON). ``agent: rules``
   keeps one memory of statements about the same entities of which one's words contain the other's, the fuller one, and deletes
   nothing: from words alone a changed value cannot be told from another value.
3. Recall. The memories nearest to the question, down to ``nearness`` of the nearest one's cosine, the nearest about each name in the question
   that none of them holds, and, ``hops`` - 1 times, those about each name that the first ``hop_memories`` brought up and the question lacks. ``read_k`` of them are read by the common reader as documents.

Kept of Mem0: extraction, the four operations against the ten nearest memories, recall by vectors, an answer from memories alone.
Changed: no running summary (documents are no conversation), recall in hops, the reader and its prompt. ``phrases: words`` recalls by bags of words
where no embedder of short statements is at hand, ``both`` by the two together.

A store of rules does not depend on the order of documents; one made by a model does, so every overlay pays for a store of its own, except
for the extraction, which is made once a document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from baselines.base import Resources, read_params
from baselines.extraction import entity_spans, normalised, read_reply, sentences, split_title
from baselines.models import Reader, open_embedder, take_usage
from baselines.phrases import KINDS, Phrases, open_encoder
from baselines.planning import TimeLimit
from baselines.reading import RagParams, ReadingSystem, Selection
from configs.errors import UserError
from configs.load import SystemSpec
from configs.records import CorpusView, Document, Question

PLANS_TIME = True  # a cell's status depends on the profile's limit
AGENTS = ("model", "rules")
REPLY_TOKENS = 1024
BATCH = 16  # documents that a model extracts from at a time
KEPT_STORES = 32  # the heads of one cell; a needle's overlay is asked once

EXTRACT_PROMPT = """List the facts that a text states, each as one short sentence that stands by itself: names in place of pronouns, numbers
and dates as they are. Reply with JSON alone, in the form of this example.
Text: Radio City was started on 3 July 2001. It plays Hindi songs.
Reply: {{"facts": ["Radio City was started on 3 July 2001.", "Radio City plays Hindi songs."]}}
Text: {text}
Reply: """
UPDATE_PROMPT = """You keep a memory of facts. For each new fact say what to do: ADD it, UPDATE a memory with it (give the memory's number and its new
text), DELETE a memory that it shows to be wrong (give its number; the fact itself is then added), or NONE where it is known already.
Reply with JSON alone, in the form of this example.
Memories: {{"4": "Radio City plays English songs."}}
New facts: {{"0": "Radio City plays English and Hindi songs.", "1": "Radio City was started in 2001."}}
Reply: {{"operations": [{{"fact": 0, "event": "UPDATE", "memory": 4, "text": "Radio City plays English and Hindi songs."}}, {{"fact": 1, "event": "ADD"}}]}}
Memories: {memories}
New facts: {facts}
Reply: """


@dataclass(frozen=True)
class Params(RagParams):
    """Who extracts and updates, and how far recall goes."""

    agent: str = "model"
    phrases: str = "model"
    neighbours: int = 10
    hops: int = 2
    hop_memories: int = 2  # recalled memories whose names the next hop follows
    nearness: float = 0.9  # a memory less near to the question than this share of the nearest is not read

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, known in (("agent", self.agent, AGENTS), ("phrases", self.phrases, KINDS)):
            if value not in known:
                raise UserError(f"{name} '{value}': set one of {', '.join(known)}")
        if min(self.neighbours, self.hops, self.hop_memories) < 1:
            raise UserError("neighbours, hops and hop_memories must be 1 or more")


@dataclass
class Store:
    """Memories by number: their text, and the documents that they come from."""

    texts: dict[int, str] = field(default_factory=dict)
    sources: dict[int, list[int]] = field(default_factory=dict)
    next: int = 0

    def add(self, text: str, source: int) -> None:
        """A new memory."""
        self.texts[self.next], self.sources[self.next] = text, [source]
        self.next += 1

    def update(self, number: int, text: str, source: int) -> None:
        """Another text for a memory, which now comes from one more document."""
        self.texts[number] = text
        if source not in self.sources[number]:
            self.sources[number].append(source)

    def delete(self, number: int) -> None:
        """Forget a memory."""
        del self.texts[number], self.sources[number]


class RuleAgent:
    """Extraction and updates by rule; see the module's docstring."""

    def extract(self, texts: Sequence[str]) -> list[list[str]]:
        """The statements of each text."""
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
    """Extraction and updates by a model.

    Args:
        limit: refuses a cell that would take too long at the speed of the calls so far.
    """

    def __init__(self, reader: Reader, params: Params, limit: TimeLimit) -> None:
        self.reader, self.params, self.limit = reader, params, limit
        self.calls = self.failures = 0  # replies without the JSON asked for are failures: such a document says nothing

    def extract(self, texts: Sequence[str]) -> list[list[str]]:
        """The statements of each text."""
        found: list[list[str]] = []
        for start in range(0, len(texts), BATCH):
            started = perf_counter()
            messages = [EXTRACT_PROMPT.format(text=text) for text in texts[start : start + BATCH]]
            for reply in self.reader.generate(messages, REPLY_TOKENS):
                facts = self._value(reply.text, "facts")
                found.append([fact for fact in facts if isinstance(fact, str) and fact.strip()])
            left = len(texts) - start - len(messages)
            self.limit.check(left, (perf_counter() - started) / len(messages))
        return found

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
            reply = self.reader.generate([message], REPLY_TOKENS)[0]
            for operation in self._value(reply.text, "operations"):
                _apply(operation, store, facts, near, document.doc_id)
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

    def _value(self, text: str, key: str) -> list:
        found = read_reply(text, key)
        self.calls += 1
        self.failures += not isinstance(found, list)
        return found if isinstance(found, list) else []


def _apply(operation: object, store: Store, facts: list[str], near: list[int], source: int) -> None:
    """Do what a model said of one fact; what names no fact, or a memory that it was not shown, is left undone."""
    if not isinstance(operation, dict):
        return
    event, place, memory = str(operation.get("event")).upper(), operation.get("fact"), operation.get("memory")
    if not isinstance(place, int) or not 0 <= place < len(facts):
        return
    known = isinstance(memory, int) and memory in near and memory in store.texts
    if event == "UPDATE" and known:
        text = operation.get("text")
        store.update(memory, text if isinstance(text, str) and text.strip() else facts[place], source)
    elif event == "DELETE" and known:
        store.delete(memory)
        store.add(facts[place], source)
    elif event == "ADD":
        store.add(facts[place], source)


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
        self._phrases = Phrases(self.encoder)
        self._extracted: dict[str, list[str]] = {}
        self._view: CorpusView | None = None

    def ingest(self, view: CorpusView) -> None:
        """Extract from every document of the view."""
        self.limit.restart()
        texts = [document.text for document in view.base]
        texts += [document.text for overlay in view.overlays.values() for document in overlay.added]
        new = [text for text in dict.fromkeys(texts) if text not in self._extracted]
        self._extracted.update(zip(new, self.agent.extract(new), strict=True))
        self._stores: dict[str, tuple[list[Document], np.ndarray]] = {}
        self._view = view

    def memory_bytes(self, view: CorpusView) -> int:
        """Bytes of the texts and vectors of all memories met so far."""
        return self._phrases.vectors.nbytes + sum(len(text.encode()) for text in self._phrases.texts)

    def take_usage(self) -> dict[str, Any]:
        """What served models cost, the embedder among them."""
        return take_usage(reader=self.reader, embedder=self._embedder)

    def select(self, questions: list[Question], view: CorpusView) -> list[Selection]:
        """Recall the memories of each question."""
        if view is not self._view:
            self.ingest(view)
        stores = [self._store(question, view) for question in questions]
        selections = []
        for question, (memories, vectors) in zip(questions, stores, strict=True):
            started = perf_counter()
            read, recalled = self._recall(question.text, memories, vectors) if memories else ([], [])
            if self.params.order == "best_last":
                read.reverse()
            sources = list(dict.fromkeys(memory.doc_id for memory in recalled))
            selections.append(Selection(read, {"memory_store": sources}, {"retrieve": perf_counter() - started}))
        return selections

    def _recall(self, question: str, memories: list[Document], vectors: np.ndarray) -> tuple[list[Document], list[Document]]:
        """The memories to read, each hop's finds behind what led to them, and ``routed_k`` in the order of recall."""
        near, scores = self._nearest(question, vectors)
        close = [place for place in near if scores[place] >= self.params.nearness * scores[near[0]]]
        for name in sorted(_names(question)):
            holding = [place for place in near if _holds(memories[place].text, name)]
            if not set(holding) & set(close):
                close += holding[:1]
        front, asked = close[: self.params.hop_memories], question
        chain = list(front)
        for _ in range(self.params.hops - 1):
            found = [place for known in front for place in self._about(memories[known].text, asked, memories, vectors)]
            asked += "".join(f" {memories[place].text}" for place in front)
            front = [place for place in dict.fromkeys(found) if place not in close][: self.params.hop_memories]
            chain += front
        read = list(dict.fromkeys([*chain, *close]))[: self.params.read_k]
        recalled = list(dict.fromkeys([*read, *near]))[: self.params.routed_k]
        return [memories[place] for place in read], [memories[place] for place in recalled]

    def _about(self, text: str, asked: str, memories: list[Document], vectors: np.ndarray) -> Iterator[int]:
        """The nearest memories about each name that a memory has and the question, or an earlier hop, has not."""
        for name in sorted(_names(text)):
            if not _holds(asked, name) and not name.replace(" ", "").isdigit():
                near, _ = self._nearest(name, vectors)
                yield from (place for place in near if _holds(memories[place].text, name))

    def _nearest(self, text: str, vectors: np.ndarray) -> tuple[list[int], np.ndarray]:
        """The ``routed_k`` nearest memories, and how near each memory is; of equals the first by text, as they are sorted."""
        scores = np.round(vectors @ self.encoder.questions([text])[0], 6)
        return np.argsort(-scores, kind="stable")[: self.params.routed_k].tolist(), scores

    def _store(self, question: Question, view: CorpusView) -> tuple[list[Document], np.ndarray]:
        key = question.overlay_id or ""
        found = self._stores.get(key)
        if found is None:
            if len(self._stores) == KEPT_STORES:
                del self._stores[next(iter(self._stores))]
            found = self._stores[key] = self._make(view.documents(question))
        return found

    def _make(self, documents: Iterable[Document]) -> tuple[list[Document], np.ndarray]:
        store = self.agent.store(((document, self._extracted[document.text]) for document in documents), self._phrases)
        items = sorted((text, store.sources[number][0]) for number, text in store.texts.items())
        numbers = self._phrases.numbers([text for text, _ in items])
        return [Document(source, text, 0) for text, source in items], self._phrases.vectors[numbers]


def make(spec: SystemSpec, resources: Resources) -> MemoryStore:
    """Open the reader and the embedder."""
    return MemoryStore(read_params(Params, spec.params, "systems.yaml: params of kind 'memory_store'"), resources)
