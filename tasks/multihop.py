"""Two-hop chains in real prose: a document names an entity's partner, another one the partner's number."""

from __future__ import annotations

import random
from collections.abc import Iterator

from msa_base.records import Document
from tasks.base import CorpusRequest, PreparedCell, TaskRequest
from tasks.parts import wording
from tasks.parts.entities import CorpusParams, draw_value, entity_corpus, head_names
from tasks.parts.heads import Ask, HeadParams, Part, prepare_heads

GROUP = 64  # tail chains whose documents are shuffled together
Params = HeadParams
__all__ = ["CorpusParams", "Params", "make_corpus", "prepare"]


def chain_sentences(entity: str, other: str, value: str, generator: random.Random) -> list[str]:
    """The link from an entity to its partner, and the partner's number: two documents."""
    return [
        generator.choice(wording.LINKS).format(entity=entity, other=other),
        generator.choice(wording.LINK_NUMBERS).format(entity=other, value=value),
    ]


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    def next_chain(names: Iterator[str], generator: random.Random) -> list[str]:
        return chain_sentences(next(names), next(names), draw_value(generator, set()), generator)

    return entity_corpus(request, "chains", next_chain, GROUP)


def chain_head(limit: int, generator: random.Random) -> Iterator[Part]:
    """At most ``limit`` sentences, by chain, and a question on each chain, documents in hop order."""
    names = head_names(generator, 2 * (limit // 2))
    used: set[str] = set()
    for entity, other in zip(names[::2], names[1::2], strict=True):
        value = draw_value(generator, used)
        question = generator.choice(wording.LINK_QUESTIONS).format(entity=entity)
        yield chain_sentences(entity, other, value, generator), [Ask(question, [value], [0, 1])]


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    return prepare_heads(request, request.read(Params), chain_head)
