"""The nine question-answering sets as tasks: a corpus is a set's own memory, a task asks questions on all of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from configs.errors import UserError
from configs.load import build
from configs.records import Document, Question
from tasks.base import OWN_MEMORY, Cell, CorpusRequest, TaskRequest
from tasks.qa.documents import Places, enough, make_chunker, numbered, opened_set, shuffled_questions

DOCUMENT_TOKENS = 256  # holds most passages whole


@dataclass(frozen=True)
class MemorySpec:
    """Parameters of a corpus: one set, cut into documents."""

    set: str
    form: str | None = None  # an edition of tasks/qa/sets.yaml; the first that is there
    chunking: str = "sentences"
    document_tokens: int = DOCUMENT_TOKENS
    max_tokens: int | None = None  # questions come with their passages until so many tokens are full
    seed: int = 42


@dataclass(frozen=True)
class AskSpec:
    """Parameters of a task."""

    max_new_tokens: int = 32
    seed: int = 42


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    """Stream all passages of a set in random order (tasks.base.CorpusModule)."""
    spec: MemorySpec = build(MemorySpec, dict(request.params), request.where)
    chunker = make_chunker(request.tokenizer, spec.chunking, spec.document_tokens, request.where)
    _, data = opened_set(request, spec.set, spec.form)
    keys = list(data.passages)
    random.Random(f"{spec.seed}/{request.name}/passages").shuffle(keys)
    if spec.max_tokens is not None:
        asked = (key for item in shuffled_questions(data, spec.seed, spec.set) for key in (*item.gold, *item.own))
        keys = list(dict.fromkeys([*asked, *keys]))
    texts = (chunk for chunks in chunker.chunks(data.passages[key] for key in keys) for chunk in chunks)
    total = 0
    for document in numbered(request.tokenizer, request.name, texts):
        total += document.num_tokens
        if total > min(request.num_tokens, spec.max_tokens or request.num_tokens):
            return
        yield document


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """The questions over the set's own memory (tasks.base.TaskModule)."""
    spec: AskSpec = build(AskSpec, dict(request.params), request.where)
    memory: MemorySpec = build(MemorySpec, dict(request.corpus_params), f"{request.where}: corpus")
    for context in request.contexts:
        if context != OWN_MEMORY:
            raise UserError(
                f"{request.where}: context {context}: a set is asked over its own memory; name the context '{OWN_MEMORY}',"
                " or take kind tasks.qa.scaling for a memory that grows"
            )
    chunker = make_chunker(request.tokenizer, memory.chunking, memory.document_tokens, request.where)
    opened, data = opened_set(request, memory.set, memory.form)
    order = shuffled_questions(data, spec.seed, memory.set)
    keys = list(dict.fromkeys(key for item in order for key in (*item.gold, *(name for name, _ in item.grades))))
    chunks_of = dict(zip(keys, chunker.chunks(data.passages[key] for key in keys), strict=True))
    places = Places(request)
    found = [(item, gold) for item in order if (gold := places.gold(item, chunks_of, f"{request.name}-{item.question_id}"))]
    enough(found, request, f"set {memory.set} in its form {opened.form.name}")
    cell = Cell(OWN_MEMORY, len(request.tail.ends))
    for item, gold in found[: request.questions]:
        cell.questions.append(Question(gold.question_id, item.text, "", spec.max_new_tokens))
        cell.gold.append(gold)
    cell.notes = {"chunking": chunker.record(), "source": opened.source(), "left_out": dict(data.left_out)}
    yield cell
