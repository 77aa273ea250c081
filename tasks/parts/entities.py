"""Made-up entities: their names, their numbers, and a corpus that says something about each.

Training, questions and tails name different entities (tasks.parts.wording.pair_role).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from msa_base.errors import UserError
from msa_base.records import Document
from msa_base.validate import Count, Seed
from tasks.base import DOCUMENT_TOKENS, CorpusRequest
from tasks.parts import wording
from tasks.parts.chunking import text_budget
from tasks.parts.prose import Prose


@dataclass(frozen=True)
class CorpusParams:
    """Parameters of a corpus about entities, which are named from a fixed pool of adjectives and nouns."""

    document_tokens: Count = DOCUMENT_TOKENS
    adjectives: Count = 500
    nouns: Count = 2500
    seed: Seed = 42


def tail_names(params: CorpusParams, generator: random.Random, where: str) -> Iterator[str]:
    """Entities of the tails, each once. Raises UserError: the pool is used up."""
    pools = []
    for words, number in zip(wording.plain_words(), (params.adjectives, params.nouns), strict=True):
        number = min(number, len(words))
        pools.append([words[index * len(words) // number] for index in range(number)])  # evenly spaced
    used: set[tuple[str, str]] = set()
    missed = 0
    while missed < 1000:
        pair = generator.choice(pools[0]), generator.choice(pools[1])
        if pair in used or wording.pair_role(*pair) != wording.TAIL:
            missed += 1
            continue
        missed = 0
        used.add(pair)
        yield wording.entity_name(*pair)
    raise UserError(f"{where}: {len(used):,} entities used up every name; raise 'adjectives' or 'nouns'")


def head_names(generator: random.Random, number: int) -> list[str]:
    """Entities of one head, drawn from few words so that siblings share one half of the name."""
    side = max(4, round((5 * number) ** 0.5))
    adjectives, nouns = (generator.sample(words, side) for words in wording.plain_words())
    pairs = [(a, n) for a in adjectives for n in nouns if wording.pair_role(a, n) == wording.ASKED]
    if len(pairs) < number:
        return head_names(generator, number)
    return [wording.entity_name(*pair) for pair in generator.sample(pairs, number)]


def draw_value(generator: random.Random, used: set[str]) -> str:
    """A number of 5 or 6 digits that is not in ``used``, and is now."""
    while (value := wording.random_number(generator, generator.choice((5, 6)))) in used:
        pass
    used.add(value)
    return value


def entity_facts(entity: str, used: set[str], generator: random.Random) -> tuple[list[str], list[str]]:
    """Sentences and values of all attributes of an entity; the values are in none of ``used``, and are now."""
    values = [draw_value(generator, used) for _ in wording.ATTRIBUTES]
    return fact_sentences(entity, values, generator), values


def fact_sentences(entity: str, values: Sequence[str], generator: random.Random) -> list[str]:
    """One sentence for each attribute of an entity."""
    return [
        generator.choice(documents).format(entity=entity, value=value)
        for (documents, _), value in zip(wording.ATTRIBUTES.values(), values, strict=True)
    ]


def entity_corpus(
    request: CorpusRequest,
    seed_name: str,
    sentences_of: Callable[[Iterator[str], random.Random], list[str]],
    shuffled: int = 1,
) -> Iterator[Document]:
    """Stream documents about entities until the tokens asked for are filled; each carries one sentence in real prose.

    ``sentences_of`` makes of (endless names, generator) the sentences on one entity or a few; those of ``shuffled``
    calls are mixed. ``seed_name`` is part of the random seed.
    """
    params = request.read(CorpusParams)
    generator, carrier = (random.Random(f"{params.seed}/{request.name}/{part}") for part in (seed_name, "carrier"))
    names = tail_names(params, generator, request.where)
    expected = 2 * request.num_tokens // params.document_tokens
    budget = text_budget(request.tokenizer, params.document_tokens, expected, request.where)
    prose = Prose.read(request.tokenizer, request.prose, wording.EVALUATION)

    def texts() -> Iterator[str]:
        start = 0
        while True:
            sentences = [sentence for _ in range(shuffled) for sentence in sentences_of(names, generator)]
            if shuffled > 1:
                generator.shuffle(sentences)
            carried, start = prose.carry_each(request.tokenizer, sentences, budget, start, carrier)
            yield from carried

    yield from request.documents(texts(), expected)
