"""The growing tails of the needle tasks: real prose, RULER's noise, or needles without end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

from msa_base.records import Document
from msa_base.validate import Count, Seed
from tasks.base import DOCUMENT_TOKENS, CorpusRequest
from tasks.parts import wording
from tasks.parts.chunking import chunks, text_budget
from tasks.parts.prose import read_sentences

NOISE_LINE = " ".join(wording.RULER_NOISE)
SEPARATORS = {"prose": " ", "noise": "\n", "needles": "\n"}  # between the sentences of a document, as in RULER


@dataclass(frozen=True)
class CorpusParams:
    """Parameters of a haystack; ``key`` and ``value`` are those of the needles form."""

    form: Literal["prose", "noise", "needles"]
    key: Literal["word", "uuid"] = "word"
    value: Literal["number", "uuid"] = "number"
    document_tokens: Count = DOCUMENT_TOKENS
    seed: Seed = 42


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


def needle_lines(params: CorpusParams, generator: random.Random) -> Iterator[str]:
    """Distractor needles without end; a word key comes once until half of those of the tails are used up."""
    used: set[str] = set()
    adjectives, nouns = wording.ruler_words()
    limit = len(adjectives) * len(nouns) // 8 if params.key == "word" else None
    while True:
        while (key := draw_key(generator, params.key, wording.TAIL)) in used:
            pass
        used.add(key)
        if limit and len(used) >= limit:
            used.clear()
        yield wording.needle(key, draw_value(generator, params.value), params.value)


def lines(request: CorpusRequest, params: CorpusParams) -> Iterator[str]:
    """The sentences of a haystack without end; prose begins anew where it is exhausted, as RULER's essays do."""
    if params.form == "prose":
        sentences = read_sentences(request.prose, wording.EVALUATION)
        while True:
            yield from sentences
    elif params.form == "noise":
        yield from repeat(NOISE_LINE)
    else:
        yield from needle_lines(params, random.Random(f"{params.seed}/{request.name}"))


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    params = request.read(CorpusParams)
    expected = 2 * request.num_tokens // params.document_tokens
    budget = text_budget(request.tokenizer, params.document_tokens, expected, request.where)
    texts = (
        SEPARATORS[params.form].join(text for text, _ in chunk)
        for chunk in chunks(request.tokenizer, lines(request, params), budget)
    )
    return request.documents(texts, expected)
