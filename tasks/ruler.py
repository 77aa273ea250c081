"""RULER's eight needle tasks over a shared haystack: each question replaces the documents that its needles fall into.

Strings, kinds and numbers of keys and values, depths and metric are those of NVIDIA/RULER; its draws are not, and its
opening sentence stands before the question, where a task has it. docs/DATA.md lists what differs.

A needle's depth is a share of the context, so the same question meets the same needles at the same depths in every
context. A document that a needle joins keeps its id and its token budget: sentences are dropped from its end, never
the needle, and where nothing else is left the document is the needle alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from msa_base import prompts
from msa_base.errors import UserError
from msa_base.records import Document, Question
from msa_base.validate import Count, Seed, Wrong
from tasks.base import PreparedCell, TaskRequest
from tasks.haystack import SEPARATORS, draw_key, draw_value
from tasks.parts import wording
from tasks.parts.chunking import count_prompts, count_tokens, make_documents
from tasks.parts.prose import Unit, insert
from tasks.parts.splitting import split_sentences

DEPTHS = tuple(int(depth) for depth in np.round(np.linspace(0, 100, num=40)))  # percent


@dataclass(frozen=True)
class Params:
    """Parameters of a needle task; defaults are RULER's.

    ``opening`` puts RULER's warning that values are hidden in front of the question. Models that were trained on
    questions without it are asked without it.
    """

    haystack: Literal["prose", "noise", "needles"]
    key: Literal["word", "uuid"] = "word"
    value: Literal["number", "uuid"] = "number"
    num_keys: Count = 1
    num_values: Count = 1  # of each key
    num_queries: Count = 1
    opening: bool = True
    seed: Seed = 42
    max_new_tokens: Count = 128

    def __post_init__(self) -> None:
        if self.num_queries > self.num_keys:
            raise Wrong(f"key 'num_queries' must be from 1 to num_keys ({self.num_keys})")
        if self.num_keys * self.num_values > len(DEPTHS):
            raise Wrong(f"num_keys times num_values must be from 1 to {len(DEPTHS)} (the depths)")


@dataclass(frozen=True)
class Needles:
    """One question and its needles: sentence, value's key, and depth as a share of the context."""

    question: Question
    answers: list[str]
    sentences: list[str]
    asked: list[bool]  # for each sentence, whether it holds one of the answers
    depths: list[float]


def draw_questions(name: str, params: Params, number: int) -> list[Needles]:
    """Keys, values, queries and depths of all questions, the same for every context.

    RULER draws anew for every length and takes each key's values before the next key, so that its draws depend on the
    tokenizer and the essays; here a seed alone fixes them.
    """
    generator = random.Random(params.seed)
    drawn = []
    for index in range(number):
        keys: list[str] = []
        while len(keys) < params.num_keys:
            key = draw_key(generator, params.key, wording.ASKED)
            if key not in keys:
                keys.append(key)
        values = [[draw_value(generator, params.value) for _ in range(params.num_values)] for _ in keys]
        queried = generator.sample(range(len(keys)), params.num_queries)
        pairs = [(key, value) for key, of_key in zip(keys, values, strict=True) for value in of_key]
        sentences = [wording.needle(key, value, params.value) for key, value in pairs]
        asked = [index in queried for index, of_key in enumerate(values) for _ in of_key]
        if params.haystack == "prose":
            depths = [depth / 100 for depth in generator.sample(DEPTHS, len(sentences))]
        else:
            depths = [generator.random() for _ in sentences]  # RULER draws line numbers here
        text, prefix = wording.ruler_question([keys[query] for query in queried], params.value, params.num_values)
        if params.opening:
            text = f"{wording.ruler_opening(params.value, params.num_queries * params.num_values)}\n{text}"
        question_id = f"{name}-{index:04d}"
        question = Question(question_id, text, prefix, params.max_new_tokens, question_id)
        answers = [value for query in queried for value in values[query]]
        drawn.append(Needles(question, answers, sentences, asked, depths))
    return drawn


def reserved_tokens(request: TaskRequest, params: Params, drawn: Sequence[Needles]) -> int:
    """Tokens that the longest prompt needs beside the haystack: needles, RULER's opening, question and answer.

    The opening counts where it is not used, too, so that a context then holds no more documents than with it.
    """
    needles = [sum(count_tokens(request.tokenizer, item.sentences)) for item in drawn]
    template = prompts.TEMPLATE_HEAD + prompts.TEMPLATE_TAIL
    if not params.opening:
        template += wording.RULER_OPENING.format(types="numbers") + " "
    texts = [item.question.text + item.question.answer_prefix for item in drawn]
    totals = zip(needles, count_prompts(request.tokenizer, template, texts), drawn, strict=True)
    return max(a + b + item.question.max_new_tokens for a, b, item in totals)


def positions(
    request: TaskRequest, item: Needles, tokens: Sequence[int], base: int, budget: int
) -> list[tuple[int, float]]:
    """For each needle, the index of its document in the prefix and its place within it as a share of the document.

    A needle for whose tokens a document has no room left, beside other needles, moves to the next document.
    """
    total = request.tail.tokens(base)
    used: Counter[int] = Counter()
    places = []
    for depth, size in zip(item.depths, tokens, strict=True):
        token = min(int(depth * total), total - 1)
        document = request.tail.at(token)
        start = request.tail.tokens(document)
        share = (token - start) / (request.tail.tokens(document + 1) - start)
        for _ in range(base):
            if used[document] + size <= budget:
                break
            document = (document + 1) % base
        else:
            wrong = f"a needle of {size} tokens finds no room"
            raise UserError(f"{request.where}: {wrong}; raise the corpus's document_tokens")
        used[document] += size
        places.append((document, share))
    return places


def _units(request: TaskRequest, params: Params, documents: dict[int, Document]) -> dict[int, list[Unit]]:
    """The sentences of documents with their tokens, counted in one batch."""
    split = {
        index: list(split_sentences(document.text)) if params.haystack == "prose" else document.text.split("\n")
        for index, document in documents.items()
    }
    counts = iter(count_tokens(request.tokenizer, [piece for pieces in split.values() for piece in pieces]))
    return {index: [(piece, next(counts)) for piece in pieces] for index, pieces in split.items()}


def prepare_context(request: TaskRequest, params: Params, drawn: Sequence[Needles], context: str) -> PreparedCell:
    """The questions at one context, each with its overlay of replaced documents."""
    base = request.base_documents(context, reserved_tokens(request, params, drawn), least=1)
    budget = request.text_tokens
    sizes = [count_tokens(request.tokenizer, item.sentences) for item in drawn]
    places = [positions(request, item, tokens, base, budget) for item, tokens in zip(drawn, sizes, strict=True)]
    units = _units(request, params, request.tail.take({index for item in places for index, _ in item}))
    separator = SEPARATORS[params.haystack]
    cell = PreparedCell(context, base)
    pending: list[tuple[str, int, str]] = []  # overlay, id, text
    for item, spread, tokens in zip(drawn, places, sizes, strict=True):
        for index in sorted({document for document, _ in spread}):
            inside = [number for number, (document, _) in enumerate(spread) if document == index]
            ours = [(item.sentences[number], tokens[number]) for number in inside]
            slots = [round(spread[number][1] * len(units[index])) for number in inside]
            text = separator.join(insert(units[index], ours, slots, budget))
            pending.append((item.question.question_id, int(request.tail.doc_ids[index]), text))
        held = (document for (document, _), asked in zip(spread, item.asked, strict=True) if asked)
        gold = dict.fromkeys(int(request.tail.doc_ids[document]) for document in held)
        cell.ask(item.question, item.answers, list(gold))
    documents = make_documents(request.tokenizer, ((doc_id, text) for _, doc_id, text in pending))
    for (overlay, _, _), document in zip(pending, documents, strict=True):
        cell.overlays.setdefault(overlay, []).append(document)
    return cell


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    """All contexts of a needle task. Raises UserError: more queries than keys, or more needles than depths."""
    params = request.read(Params)
    drawn = draw_questions(request.name, params, request.questions)
    for context in request.contexts:
        yield prepare_context(request, params, drawn, context)
