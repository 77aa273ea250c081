"""Corpus-level questions (generated): counting and comparing what many documents say, where no single one holds the answer.

``count`` asks how many entities share a partner, over documents that name one partner each (a tail of kind multihop).
``compare`` asks for the largest of several entities' values of one attribute (a tail of kind scaling); naming the value of
another of them is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from configs.errors import UserError
from tasks import wording
from tasks.base import Cell, TaskRequest
from tasks.scaling import (
    Ask,
    HeadSpec,
    checked_heads,
    constant_floor,
    draw_value,
    fact_sentences,
    head_names,
    make_heads,
    prepare_heads,
)

ASKS = ("count", "compare")
COUNT = ("How many have {other} as a partner?", "Of how many is {other} the partner?")
COMPARE = {
    "population": "Of {entities}, how many inhabitants does the one with the most inhabitants have?",
    "elevation": "Of {entities}, how high is the highest?",
    "budget": "Of {entities}, what is the annual budget of the one with the largest budget?",
    "collection": "Of {entities}, how large is the largest reading collection?",
}


@dataclass(frozen=True)
class AggregateSpec(HeadSpec):
    """Parameters: what is asked; the most entities that share a partner, or how many are compared."""

    ask: str = "count"
    entities: int = 8


def count_head(most: int, limit: int, generator: random.Random) -> tuple[list[str], list[Ask]]:
    """Partners shared by 2 to ``most`` entities, in turn, and a question on each partner."""
    sizes: list[int] = []
    while sum(sizes) < limit - most:
        sizes.append(2 + len(sizes) % (most - 1))
    names = iter(head_names(generator, sum(sizes) + len(sizes)))
    sentences: list[str] = []
    asks = []
    for size in sizes:
        other = next(names)
        indices = list(range(len(sentences), len(sentences) + size))
        sentences += [generator.choice(wording.LINKS).format(entity=next(names), other=other) for _ in indices]
        asks.append(Ask(generator.choice(COUNT).format(other=other), [str(size)], indices))
    return sentences, asks


def compare_head(number: int, limit: int, generator: random.Random) -> tuple[list[str], list[Ask]]:
    """Entities with all attributes, and for each a comparison with ``number - 1`` others."""
    names = head_names(generator, limit // len(wording.ATTRIBUTES))
    if len(names) < number:
        return [], []
    used: set[str] = set()
    sentences: list[str] = []
    values = []
    for entity in names:
        of_entity = [draw_value(generator, used) for _ in wording.ATTRIBUTES]
        used.update(of_entity)
        values.append(of_entity)
        sentences += fact_sentences(entity, of_entity, generator)
    asks = []
    for place in range(len(names)):
        others = generator.sample([index for index in range(len(names)) if index != place], number - 1)
        compared = generator.sample([place, *others], number)
        column, attribute = generator.choice(list(enumerate(wording.ATTRIBUTES)))
        ranked = sorted((values[index][column] for index in compared), key=int, reverse=True)
        question = COMPARE[attribute].format(entities=wording.enumerated([names[index] for index in compared]))
        documents = [index * len(wording.ATTRIBUTES) + column for index in compared]
        asks.append(Ask(question, ranked[:1], documents, ranked[1:]))
    return sentences, asks


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """All contexts of a counting or comparing task (tasks.base.TaskModule)."""
    spec = checked_heads(request, AggregateSpec, entities=2)
    if spec.ask not in ASKS:
        raise UserError(f"{request.where}: key 'ask' must be one of {', '.join(ASKS)}, found {spec.ask!r}")
    heads = make_heads(request, spec, partial(count_head if spec.ask == "count" else compare_head, spec.entities))
    floor = constant_floor(heads) if spec.ask == "count" else (1 / spec.entities, "any one of the compared values")
    yield from prepare_heads(request, spec, heads, floor=floor)
