"""Summaries of what a large corpus says (generated): the share of the key facts on some topics that a summary covers.

The key facts of a topic are the attributes of an entity, one document each, among a corpus of the same form (a tail of kind
scaling). The metric ``coverage`` counts the values that the summary names; the values of other entities earn nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from tasks import wording
from tasks.base import Cell, TaskRequest
from tasks.scaling import (
    Ask,
    HeadSpec,
    checked_heads,
    draw_value,
    fact_sentences,
    head_names,
    make_heads,
    prepare_heads,
)

SUMMARISE = (
    "Summarise what is known about {topics}: inhabitants, height, yearly costs and books.",
    "Write a summary on {topics} with the number of inhabitants, the height, the yearly costs and the books.",
)
PREFIX = "The key facts are"


@dataclass(frozen=True)
class SummarySpec(HeadSpec):
    """Parameters: how many entities a summary is about."""

    topics: int = 2
    max_new_tokens: int = 128


def summary_head(topics: int, limit: int, generator: random.Random) -> tuple[list[str], list[Ask]]:
    """Entities with all attributes, and one summary of every ``topics`` of them."""
    names = head_names(generator, max(topics, limit // len(wording.ATTRIBUTES)))
    used: set[str] = set()
    sentences: list[str] = []
    asks = []
    for first in range(0, len(names) - topics + 1, topics):
        chosen = names[first : first + topics]
        start, values = len(sentences), []
        for entity in chosen:
            of_entity = []
            for _ in wording.ATTRIBUTES:
                of_entity.append(draw_value(generator, used))
                used.add(of_entity[-1])
            sentences += fact_sentences(entity, of_entity, generator)
            values += of_entity
        question = generator.choice(SUMMARISE).format(topics=wording.enumerated(chosen))
        asks.append(Ask(question, values, list(range(start, len(sentences)))))
    return sentences, asks


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """All contexts of the summarising task (tasks.base.TaskModule)."""
    spec = checked_heads(request, SummarySpec, topics=1)
    heads = make_heads(request, spec, partial(summary_head, spec.topics))
    yield from prepare_heads(request, spec, heads, PREFIX, floor=(0.0, "guessing numbers"))
