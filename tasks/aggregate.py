"""Corpus-level questions (generated): counting and comparing what many documents say.

``count`` asks how many entities share a partner, over documents that name one partner each (a tail of kind multihop).
``compare`` asks for the largest of several entities' values of one attribute (a tail of kind scaling); naming
the value of another of them is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Annotated, Literal

from pydantic import Field

from tasks.base import PreparedCell, TaskRequest
from tasks.parts import wording
from tasks.parts.entities import entity_facts, head_names
from tasks.parts.heads import Ask, HeadParams, Part, prepare_heads

COUNT = ("How many have {other} as a partner?", "Of how many is {other} the partner?")
COMPARE = {
    "population": "Of {entities}, how many inhabitants does the one with the most inhabitants have?",
    "elevation": "Of {entities}, how high is the highest?",
    "budget": "Of {entities}, what is the annual budget of the one with the largest budget?",
    "collection": "Of {entities}, how large is the largest reading collection?",
}


@dataclass(frozen=True)
class Params(HeadParams):
    """Parameters: what is asked; the most entities that share a partner, or how many are compared."""

    ask: Literal["count", "compare"] = "count"
    entities: Annotated[int, Field(ge=2, le=1000)] = 8


def count_head(most: int, limit: int, generator: random.Random) -> Iterator[Part]:
    """Partners shared by 2 to ``most`` entities, in turn, and a question on each partner."""
    sizes: list[int] = []
    while sum(sizes) < limit - most:
        sizes.append(2 + len(sizes) % (most - 1))
    names = iter(head_names(generator, sum(sizes) + len(sizes)))
    for size in sizes:
        other = next(names)
        sentences = [generator.choice(wording.LINKS).format(entity=next(names), other=other) for _ in range(size)]
        yield sentences, [Ask(generator.choice(COUNT).format(other=other), [str(size)], list(range(size)))]


def compare_head(number: int, limit: int, generator: random.Random) -> list[Part]:
    """Entities with all attributes, and for each a comparison with ``number - 1`` others."""
    names = head_names(generator, limit // len(wording.ATTRIBUTES))
    if len(names) < number:
        return []
    used: set[str] = set()
    sentences, values = zip(*(entity_facts(entity, used, generator) for entity in names), strict=True)
    asks = []
    for place in range(len(names)):
        others = generator.sample([index for index in range(len(names)) if index != place], number - 1)
        compared = generator.sample([place, *others], number)
        column, attribute = generator.choice(list(enumerate(wording.ATTRIBUTES)))
        ranked = sorted((values[index][column] for index in compared), key=int, reverse=True)
        question = COMPARE[attribute].format(entities=wording.enumerated([names[index] for index in compared]))
        documents = [index * len(wording.ATTRIBUTES) + column for index in compared]
        asks.append(Ask(question, ranked[:1], documents, ranked[1:]))
    return [(list(chain.from_iterable(sentences)), asks)]


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    params = request.read(Params)
    if params.ask == "count":
        return prepare_heads(request, params, partial(count_head, params.entities), floor=None)
    floor = (1 / params.entities, "any one of the compared values")
    return prepare_heads(request, params, partial(compare_head, params.entities), floor=floor)
