"""Summaries of what a large corpus says (generated): the share of the key facts on some topics that a summary covers.

The key facts of a topic are the attributes of an entity, one document each, among a corpus of the same form (a tail of
kind scaling). The metric ``coverage`` counts the values that the summary names; values of other entities earn nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

from msa_base.validate import Count
from tasks.base import PreparedCell, TaskRequest
from tasks.parts import wording
from tasks.parts.entities import entity_facts, head_names
from tasks.parts.heads import Ask, HeadParams, Part, prepare_heads

SUMMARISE = (
    "Summarise what is known about {topics}: inhabitants, height, yearly costs and books.",
    "Write a summary on {topics} with the number of inhabitants, the height, the yearly costs and the books.",
)
PREFIX = "The key facts are"


@dataclass(frozen=True)
class Params(HeadParams):
    """Parameters: how many entities a summary is about."""

    topics: Count = 2
    max_new_tokens: Count = 128


def summary_head(topics: int, limit: int, generator: random.Random) -> Iterator[Part]:
    """Entities with all attributes, and one summary of every ``topics`` of them."""
    names = head_names(generator, max(topics, limit // len(wording.ATTRIBUTES)))
    used: set[str] = set()
    for first in range(0, len(names) - topics + 1, topics):
        chosen = names[first : first + topics]
        known = [entity_facts(entity, used, generator) for entity in chosen]
        sentences, values = (list(chain.from_iterable(part)) for part in zip(*known, strict=True))
        question = generator.choice(SUMMARISE).format(topics=wording.enumerated(chosen))
        yield sentences, [Ask(question, values, list(range(len(sentences))))]


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    params = request.read(Params)
    return prepare_heads(request, params, partial(summary_head, params.topics), PREFIX, (0.0, "guessing numbers"))
