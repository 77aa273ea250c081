"""RULER's eight needle tasks over a shared haystack: each question replaces the documents that its needles fall into.

A needle's depth is a share of the context, so the same question meets the same needles at the same depths in every
context. A document that a needle joins keeps its id and its token budget: sentences are dropped from its end, never
the needle, and where nothing else is left the document is the needle alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs import prompts
from configs.errors import UserError
from configs.load import build
from configs.records import Document, Question
from tasks import wording
from tasks.base import Cell, Gold, TaskRequest, base_documents
from tasks.carrier import Unit, insert
from tasks.chunking import count_tokens, counted
from tasks.haystack import SEPARATORS, draw_key, draw_value
from tasks.sources import split_sentences

DEPTHS = tuple(int(depth) for depth in np.round(np.linspace(0, 100, num=40)))  # percent


@dataclass(frozen=True)
class RulerSpec:
    """Parameters of a needle task; defaults are RULER's."""

    haystack: str  # prose | noise | needles
    key: str = "word"  # word | uuid
    value: str = "number"  # number | uuid
    num_keys: int = 1
    num_values: int = 1  # of each key
    num_queries: int = 1
    seed: int = 42
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Needles:
    """One question and its needles: sentence, value's key, and depth as a share of the context."""

    question: Question
    answers: list[str]
    sentences: list[str]
    asked: list[bool]  # for each sentence, whether it holds one of the answers
    depths: list[float]


def _checked(request: TaskRequest) -> RulerSpec:
    spec: RulerSpec = build(RulerSpec, dict(request.params), request.where)
    known = {"haystack": tuple(SEPARATORS), "key": ("word", "uuid"), "value": ("number", "uuid")}
    for key, allowed in known.items():
        if getattr(spec, key) not in allowed:
            raise UserError(
                f"{request.where}: key '{key}' must be one of {', '.join(allowed)}, found {getattr(spec, key)!r}"
            )
    if not 1 <= spec.num_queries <= spec.num_keys:
        raise UserError(f"{request.where}: key 'num_queries' must be from 1 to num_keys ({spec.num_keys})")
    if spec.num_values < 1 or spec.num_keys * spec.num_values > len(DEPTHS):
        raise UserError(f"{request.where}: num_keys times num_values must be from 1 to {len(DEPTHS)} (the depths)")
    return spec


def draw_questions(name: str, spec: RulerSpec, number: int) -> list[Needles]:
    """Keys, values, queries and depths of all questions, in RULER's order of drawing; the same for every context."""
    generator = random.Random(spec.seed)
    drawn = []
    for index in range(number):
        keys: list[str] = []
        while len(keys) < spec.num_keys:
            key = draw_key(generator, spec.key, wording.ASKED)
            if key not in keys:
                keys.append(key)
        values = [[draw_value(generator, spec.value) for _ in range(spec.num_values)] for _ in keys]
        queried = generator.sample(range(len(keys)), spec.num_queries)
        sentences = [
            wording.needle(key, value, spec.value) for key, of_key in zip(keys, values, strict=True) for value in of_key
        ]
        asked = [index in queried for index, of_key in enumerate(values) for _ in of_key]
        if spec.haystack == "prose":
            depths = [depth / 100 for depth in generator.sample(DEPTHS, len(sentences))]
        else:
            depths = [generator.random() for _ in sentences]  # RULER draws line numbers here
        text, prefix = wording.ruler_question([keys[query] for query in queried], spec.value, spec.num_values)
        question_id = f"{name}-{index:04d}"
        question = Question(question_id, text, prefix, spec.max_new_tokens, question_id)
        answers = [value for query in queried for value in values[query]]
        drawn.append(Needles(question, answers, sentences, asked, depths))
    return drawn


def reserved_tokens(request: TaskRequest, drawn: Sequence[Needles]) -> int:
    """Tokens that the longest prompt needs beside the haystack: needles, RULER's instruction, question and answer."""
    needles = [sum(count_tokens(request.tokenizer, item.sentences)) for item in drawn]
    template = prompts.TEMPLATE_HEAD + prompts.TEMPLATE_TAIL + wording.RULER_TASK.format(types="numbers")
    texts = [template + " " + item.question.text + item.question.answer_prefix for item in drawn]
    totals = zip(needles, count_tokens(request.tokenizer, texts), drawn, strict=True)
    return max(a + b + item.question.max_new_tokens for a, b, item in totals)


def positions(
    request: TaskRequest, item: Needles, tokens: Sequence[int], base: int, budget: int
) -> list[tuple[int, float]]:
    """For each needle, the index of its document in the prefix and its place within it as a share of the document.

    A needle for whose tokens a document has no room left, beside other needles, moves to the next document.
    """
    total = request.tail.tokens(base)
    used: dict[int, int] = {}
    places = []
    for depth, size in zip(item.depths, tokens, strict=True):
        token = min(int(depth * total), total - 1)
        document = request.tail.at(token)
        start = request.tail.tokens(document)
        share = (token - start) / (request.tail.tokens(document + 1) - start)
        for _ in range(base):
            if used.get(document, 0) + size <= budget:
                break
            document = (document + 1) % base
        else:
            raise UserError(
                f"{request.where}: a needle of {size} tokens finds no room; raise the corpus's document_tokens"
            )
        used[document] = used.get(document, 0) + size
        places.append((document, share))
    return places


def _units(request: TaskRequest, spec: RulerSpec, documents: dict[int, Document]) -> dict[int, list[Unit]]:
    """The sentences of documents with their tokens, counted in one batch."""
    split = {
        index: list(split_sentences(document.text)) if spec.haystack == "prose" else document.text.split("\n")
        for index, document in documents.items()
    }
    counts = iter(count_tokens(request.tokenizer, [piece for pieces in split.values() for piece in pieces]))
    return {index: [(piece, next(counts)) for piece in pieces] for index, pieces in split.items()}


def prepare_context(request: TaskRequest, spec: RulerSpec, drawn: Sequence[Needles], context: str) -> Cell:
    """The questions at one context, each with its overlay of replaced documents."""
    base = base_documents(request, context, reserved_tokens(request, drawn), least=1)
    budget = request.text_tokens
    sizes = [count_tokens(request.tokenizer, item.sentences) for item in drawn]
    places = [positions(request, item, tokens, base, budget) for item, tokens in zip(drawn, sizes, strict=True)]
    units = _units(request, spec, request.tail.take({index for item in places for index, _ in item}))
    separator = SEPARATORS[spec.haystack]
    cell = Cell(context, base)
    pending: list[tuple[str, int, str]] = []  # overlay, id, text
    for item, spread, tokens in zip(drawn, places, sizes, strict=True):
        gold: dict[int, None] = {}
        for index in sorted({document for document, _ in spread}):
            inside = [number for number, (document, _) in enumerate(spread) if document == index]
            ours = [(item.sentences[number], tokens[number]) for number in inside]
            slots = [round(spread[number][1] * len(units[index])) for number in inside]
            doc_id = int(request.tail.doc_ids[index])
            pending.append(
                (item.question.question_id, doc_id, separator.join(insert(units[index], ours, slots, budget)))
            )
        for number, (document, _) in enumerate(spread):
            if item.asked[number]:
                gold[int(request.tail.doc_ids[document])] = None
        cell.questions.append(item.question)
        cell.gold.append(Gold(item.question.question_id, item.answers, list(gold)))
    documents = counted(request.tokenizer, ((doc_id, text) for _, doc_id, text in pending))
    for (overlay, _, _), document in zip(pending, documents, strict=True):
        cell.overlays.setdefault(overlay, []).append(document)
    return cell


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """All contexts of a needle task (tasks.base.TaskModule)."""
    spec = _checked(request)
    drawn = draw_questions(request.name, spec, request.questions)
    for context in request.contexts:
        yield prepare_context(request, spec, drawn, context)
