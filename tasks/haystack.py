"""The growing tails of the needle tasks: real prose, RULER's noise, or needles without end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

from configs.errors import UserError
from configs.load import build
from configs.records import Document
from tasks import wording
from tasks.base import DOCUMENT_TOKENS, CorpusRequest
from tasks.chunking import chunks, counted, random_ids, text_budget
from tasks.sources import read_sentences

NOISE_LINE = " ".join(wording.RULER_NOISE)
SEPARATORS = {"prose": " ", "noise": "\n", "needles": "\n"}  # between the sentences of a document, as in RULER


@dataclass(frozen=True)
class HaystackSpec:
    """Parameters of a haystack; ``key`` and ``value`` (word, number, uuid) are those of the needles form."""

    form: str  # prose | noise | needles
    key: str = "word"
    value: str = "number"
    document_tokens: int = DOCUMENT_TOKENS
    seed: int = 42


def draw_key(generator: random.Random, kind: str, role: str) -> str:
    """A key of a role (:func:`wording.pair_role`), so that no key of a tail is ever asked for."""
    if kind == "uuid":
        return wording.random_uuid(generator)
    adjectives, nouns = wording.ruler_words()
    while True:
        pair = generator.choice(adjectives), generator.choice(nouns)
        if wording.pair_role(*pair) == role:
            return "-".join(pair)


def draw_value(generator: random.Random, kind: str) -> str:
    """A value: 7 digits or a UUID."""
    return wording.random_uuid(generator) if kind == "uuid" else wording.random_number(generator)


def needle_lines(spec: HaystackSpec, generator: random.Random) -> Iterator[str]:
    """Distractor needles without end; a word key comes once until half of those of the tails are used up."""
    used: set[str] = set()
    adjectives, nouns = wording.ruler_words()
    limit = len(adjectives) * len(nouns) // 8 if spec.key == "word" else None
    while True:
        key = draw_key(generator, spec.key, wording.TAIL)
        if key in used:
            continue
        used.add(key)
        if limit and len(used) >= limit:
            used.clear()
        yield wording.needle(key, draw_value(generator, spec.value), spec.value)


def lines(request: CorpusRequest, spec: HaystackSpec) -> Iterator[str]:
    """The sentences of a haystack without end; prose begins anew where it is exhausted, as RULER's essays do."""
    if spec.form == "prose":
        sentences = read_sentences(request.prose, wording.EVALUATION)
        while True:
            yield from sentences
    elif spec.form == "noise":
        yield from repeat(NOISE_LINE)
    else:
        yield from needle_lines(spec, random.Random(f"{spec.seed}/{request.name}"))


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    """Stream a haystack's documents until the tokens asked for are filled (tasks.base.CorpusModule)."""
    spec: HaystackSpec = build(HaystackSpec, dict(request.params), request.where)
    for key, value, known in (
        ("form", spec.form, tuple(SEPARATORS)),
        ("key", spec.key, ("word", "uuid")),
        ("value", spec.value, ("number", "uuid")),
    ):
        if value not in known:
            raise UserError(f"{request.where}: key '{key}' must be one of {', '.join(known)}, found {value!r}")
    expected = 2 * request.num_tokens // spec.document_tokens
    budget = text_budget(request.tokenizer, spec.document_tokens, expected, request.where)
    ids = random_ids(request.name, expected)
    texts = (
        SEPARATORS[spec.form].join(text for text, _ in chunk)
        for chunk in chunks(request.tokenizer, lines(request, spec), budget)
    )
    total = 0
    for document in counted(request.tokenizer, zip(ids, texts, strict=False)):
        yield document
        total += document.num_tokens
        if total >= request.num_tokens:
            return
