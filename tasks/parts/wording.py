"""The sentences that carry needles, facts and links, the questions that ask for them, and the words they are made of.

The RULER strings are those of NVIDIA/RULER (``niah.py`` and ``constants.py`` of scripts/data/synthetic, at c3f5e3b), as
scores compare only under them.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Sequence
from functools import cache

RULER_NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
RULER_NEEDLE = "One of the special magic {types} for {key} is: {value}."
RULER_OPENING = (
    "Some special magic {types} are hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {types} afterwards."
)
RULER_OPENING_ONE = (
    "A special magic {type} is hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {type} afterwards."
)
RULER_QUESTION = "What are all the special magic {types} for {query} mentioned in the provided text?"
RULER_PREFIX = " The special magic {types} for {query} mentioned in the provided text are"
RULER_QUESTION_ONE = "What is the special magic {type} for {query} mentioned in the provided text?"
RULER_PREFIX_ONE = " The special magic {type} for {query} mentioned in the provided text is"
PLURALS = {"number": "numbers", "word": "words", "uuid": "uuids"}

# attribute -> (document wordings, question wordings); the two sides share few content words, so that finding the
# entity is not finding the attribute
ATTRIBUTES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "population": (
        ("{entity} is home to {value} people.", "Some {value} residents live in {entity}."),
        ("How many inhabitants does {entity} have?", "What is the population of {entity}?"),
    ),
    "elevation": (
        ("{entity} rises {value} feet above the sea.", "The top of {entity} is {value} feet up."),
        ("What is the elevation of {entity}?", "How high is {entity}?"),
    ),
    "budget": (
        ("{entity} spends {value} dollars every year.", "The yearly costs at {entity} are {value} dollars."),
        ("What is the annual budget of {entity}?", "How much money does {entity} need?"),
    ),
    "collection": (
        ("The library of {entity} holds {value} books.", "There are {value} volumes on the shelves of {entity}."),
        ("How large is the reading collection of {entity}?", "What amount of literature does {entity} own?"),
    ),
}
LINKS = ("The partner of {entity} is {other}.", "{entity} has a partner called {other}.")
LINK_NUMBERS = ("The number for {entity} is {value}.", "{entity} has the number {value}.")
LINK_QUESTIONS = ("What is the number for the partner of {entity}?", "Which number does the partner of {entity} have?")
ANSWER_PREFIX = "The answer is"  # of facts and chains: the value follows

TRAIN, EVALUATION = "train", "evaluation"
ASKED, TAIL = "asked", "tail"  # roles of the evaluation's names


@cache
def ruler_words() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The adjectives and nouns of the package wonderwords: the lists that RULER reads."""
    from wonderwords import Defaults, RandomWord

    generator = RandomWord(adjective=Defaults.ADJECTIVES, noun=Defaults.NOUNS)
    adjectives, nouns = (generator._categories[name] for name in ("adjective", "noun"))
    return tuple(adjectives), tuple(nouns)


@cache
def plain_words() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The adjectives and nouns that are one lower-case word of letters: what entities are named after."""
    adjectives, nouns = ruler_words()
    shared = set(adjectives) & set(nouns)
    return tuple(
        tuple(sorted({word for word in words if word.isascii() and word.isalpha() and word.islower()} - shared))
        for words in (adjectives, nouns)
    )


def pair_role(adjective: str, noun: str) -> str:
    """TRAIN, ASKED or TAIL: which evaluation pairs questions and heads may use, and which the tails."""
    digest = hashlib.sha256(f"{adjective.strip().lower()}|{noun.strip().lower()}".encode()).digest()
    if not digest[0] & 1:
        return TRAIN
    return ASKED if digest[1] & 1 else TAIL


def entity_name(adjective: str, noun: str) -> str:
    """The name of an entity: both words capitalised."""
    return f"{adjective.capitalize()} {noun.capitalize()}"


def random_uuid(generator: random.Random) -> str:
    """A version 4 UUID from 128 seeded bits."""
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


def random_number(generator: random.Random, digits: int = 7) -> str:
    """A decimal number of exactly ``digits`` digits."""
    return str(generator.randint(10 ** (digits - 1), 10**digits - 1))


def listing(parts: Sequence[str]) -> str:
    """``a``, ``a, and b``, ``a, b, and c``: RULER's way to join several queries and values."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + ", and " + parts[-1]


def enumerated(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def needle(key: str, value: str, kind: str) -> str:
    """A needle sentence; ``kind`` is number, word or uuid."""
    return RULER_NEEDLE.format(types=PLURALS[kind], key=key, value=value)


def ruler_question(queries: Sequence[str], kind: str, num_values: int) -> tuple[str, str]:
    """RULER's question and answer prefix; singular with one query of one value."""
    query = listing(queries)
    if len(queries) * num_values == 1:
        return RULER_QUESTION_ONE.format(type=kind, query=query), RULER_PREFIX_ONE.format(type=kind, query=query)
    types = PLURALS[kind]
    return RULER_QUESTION.format(types=types, query=query), RULER_PREFIX.format(types=types, query=query)


def ruler_opening(kind: str, num_answers: int) -> str:
    """RULER's warning that values are hidden, which opens its prompts; singular with one value asked for."""
    one = num_answers == 1
    return RULER_OPENING_ONE.format(type=kind) if one else RULER_OPENING.format(types=PLURALS[kind])


def template_words() -> list[str]:
    """Every sentence of this module, for the vocabulary."""
    ruler = [RULER_OPENING, RULER_OPENING_ONE, RULER_QUESTION, RULER_PREFIX, RULER_QUESTION_ONE, RULER_PREFIX_ONE]
    fixed = [*RULER_NOISE, RULER_NEEDLE, *ruler]
    facts = [text for documents, questions in ATTRIBUTES.values() for text in (*documents, *questions)]
    return [*fixed, *PLURALS, *PLURALS.values(), *facts, *LINKS, *LINK_NUMBERS, *LINK_QUESTIONS, ANSWER_PREFIX]
