"""Single-hop facts about many entities, carried by real prose: the same head of questions over a growing tail.

Every document is a passage of prose with one sentence of ours: an attribute of an entity. Heads hold the asked facts,
the other attributes of the same entities and entities that share one half of the name; the tail holds the same form
about other entities, so every document of a corpus is distinct at any size.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from msa_base.records import Document
from tasks.base import CorpusRequest, PreparedCell, TaskRequest
from tasks.parts import wording
from tasks.parts.entities import CorpusParams, draw_value, entity_corpus, fact_sentences, head_names
from tasks.parts.heads import Ask, HeadParams, Part, prepare_heads

GROUP = 64  # tail entities whose documents are shuffled together
Params = HeadParams
__all__ = ["CorpusParams", "Params", "make_corpus", "prepare"]


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    def facts(names: Iterator[str], generator: random.Random) -> list[str]:
        values = [draw_value(generator, set()) for _ in wording.ATTRIBUTES]
        return fact_sentences(next(names), values, generator)

    return entity_corpus(request, "facts", facts, GROUP)


def fact_head(limit: int, generator: random.Random) -> Iterator[Part]:
    """At most ``limit`` fact sentences, by entity, and a question on each."""
    used: set[str] = set()
    for entity in head_names(generator, limit // len(wording.ATTRIBUTES)):
        values, asks = [], []
        for place, (_, questions) in enumerate(wording.ATTRIBUTES.values()):
            values.append(draw_value(generator, used))
            asks.append(Ask(generator.choice(questions).format(entity=entity), values[-1:], [place]))
        yield fact_sentences(entity, values, generator), asks


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    return prepare_heads(request, request.read(Params), fact_head)
