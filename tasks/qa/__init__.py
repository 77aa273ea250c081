"""The nine question-answering sets as tasks: a corpus is a set's own memory, a task asks questions on all of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msa_base.errors import UserError
from msa_base.records import Document, Question
from msa_base.validate import Count, Seed, Tokens, build
from tasks.base import OWN_MEMORY, CorpusRequest, PreparedCell, TaskRequest
from tasks.parts.splitting import Strategy
from tasks.qa.documents import DocumentIds, check_enough, load_set, make_chunker, shuffled_questions, unique_documents

DOCUMENT_TOKENS = 256  # holds most passages whole


@dataclass(frozen=True)
class CorpusParams:
    """Parameters of a corpus: one set, cut into documents."""

    set: str
    form: str | None = None  # an edition of tasks/qa/sets.yaml; the first that is there
    chunking: Strategy = "sentences"
    document_tokens: Count = DOCUMENT_TOKENS
    max_tokens: Tokens | None = None  # questions come with their passages until so many tokens are full
    seed: Seed = 42


@dataclass(frozen=True)
class Params:
    """Parameters of a task."""

    max_new_tokens: Count = 32
    seed: Seed = 42


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    """Stream all passages of a set in random order."""
    params = request.read(CorpusParams)
    chunker = make_chunker(request.tokenizer, params.chunking, params.document_tokens, request.where)
    _, data = load_set(request, params.set, params.form)
    keys = list(data.passages)
    random.Random(f"{params.seed}/{request.name}/passages").shuffle(keys)
    if params.max_tokens is not None:
        asked = (key for item in shuffled_questions(data, params.seed, params.set) for key in (*item.gold, *item.own))
        keys = list(dict.fromkeys([*asked, *keys]))
    texts = (chunk for chunks in chunker.chunks(data.passages[key] for key in keys) for chunk in chunks)
    documents = _within(
        unique_documents(request.tokenizer, request.name, texts),
        min(request.num_tokens, params.max_tokens or request.num_tokens),
    )
    if params.max_tokens is not None:  # gold was chosen first, and may not stand first
        documents = list(documents)
        random.Random(f"{params.seed}/{request.name}/documents").shuffle(documents)
    yield from documents


def _within(documents: Iterable[Document], num_tokens: int) -> Iterator[Document]:
    """The leading documents of at most so many tokens."""
    total = 0
    for document in documents:
        total += document.num_tokens
        if total > num_tokens:
            return
        yield document


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    """The questions over the set's own memory. Raises UserError: another context, or too few questions in the set."""
    params = request.read(Params)
    memory: CorpusParams = build(CorpusParams, dict(request.corpus_params), f"{request.where}: corpus")
    for context in request.contexts:
        if context != OWN_MEMORY:
            mend = f"name the context '{OWN_MEMORY}', or take kind tasks.qa.scaling for a memory that grows"
            raise UserError(f"{request.where}: context {context}: a set is asked over its own memory; {mend}")
    chunker = make_chunker(request.tokenizer, memory.chunking, memory.document_tokens, request.where)
    edition, data = load_set(request, memory.set, memory.form)
    order = shuffled_questions(data, params.seed, memory.set)
    keys = list(dict.fromkeys(key for item in order for key in (*item.gold, *(name for name, _ in item.grades))))
    chunks_of = dict(zip(keys, chunker.chunks(data.passages[key] for key in keys), strict=True))
    places = DocumentIds(request)
    found = [
        (item, gold) for item in order if (gold := places.gold(item, chunks_of, f"{request.name}-{item.question_id}"))
    ]
    check_enough(found, request, f"set {memory.set} in its form {edition.form.name}")
    cell = PreparedCell(OWN_MEMORY, len(request.tail.ends))
    for item, gold in found[: request.questions]:
        cell.questions.append(Question(gold.question_id, item.text, "", params.max_new_tokens))
        cell.gold.append(gold)
    cell.notes = chunker.notes(edition, data)
    yield cell
