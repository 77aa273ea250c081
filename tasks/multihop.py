"""Two-hop chains in real prose: a document names an entity's partner, another one the partner's number."""

from __future__ import annotations

import random
from collections.abc import Iterator

from configs.load import build
from configs.records import Document
from tasks import wording
from tasks.base import Cell, CorpusRequest, TaskRequest
from tasks.scaling import (
    GROUP,
    Ask,
    TailSpec,
    checked_heads,
    draw_value,
    head_names,
    make_heads,
    prepare_heads,
    stream,
    tail_names,
)


def chain_sentences(entity: str, other: str, value: str, generator: random.Random) -> list[str]:
    """The link from an entity to its partner, and the partner's number: two documents."""
    return [
        generator.choice(wording.LINKS).format(entity=entity, other=other),
        generator.choice(wording.LINK_NUMBERS).format(entity=other, value=value),
    ]


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    """Stream chains among the tail's entities (tasks.base.CorpusModule)."""
    spec: TailSpec = build(TailSpec, dict(request.params), request.where)
    generator = random.Random(f"{spec.seed}/{request.name}/chains")
    names = tail_names(spec, generator, request.where)

    def groups() -> Iterator[list[str]]:
        while True:
            sentences: list[str] = []
            for _ in range(GROUP):
                sentences += chain_sentences(next(names), next(names), draw_value(generator, set()), generator)
            generator.shuffle(sentences)
            yield sentences

    yield from stream(request, spec, groups())


def chain_head(limit: int, generator: random.Random) -> tuple[list[str], list[Ask]]:
    """At most ``limit`` sentences of the chains of one head and a question on each chain, documents in hop order."""
    names = head_names(generator, 2 * (limit // 2))
    used: set[str] = set()
    sentences: list[str] = []
    asks = []
    for entity, other in zip(names[::2], names[1::2], strict=True):
        value = draw_value(generator, used)
        used.add(value)
        question = generator.choice(wording.LINK_QUESTIONS).format(entity=entity)
        asks.append(Ask(question, [value], [len(sentences), len(sentences) + 1]))
        sentences += chain_sentences(entity, other, value, generator)
    return sentences, asks


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """All contexts of the two-hop task (tasks.base.TaskModule)."""
    spec = checked_heads(request)
    yield from prepare_heads(request, spec, make_heads(request, spec, chain_head))
