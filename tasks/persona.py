"""Persona over a long dialogue history (generated): what somebody has said of themselves, asked of their digital twin.

A history is exchanges of one persona with an assistant, each a document that carries real prose; the tail is the
histories of others. Every fact is asked in several wordings, so that a twin that answers one and not another is seen
(``every_wording``). Half of the facts are numbers, half are words of a small set.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from msa_base.records import Document
from msa_base.validate import Count
from tasks.base import CorpusRequest, PreparedCell, TaskRequest
from tasks.parts import wording
from tasks.parts.entities import CorpusParams, entity_corpus, head_names
from tasks.parts.heads import Ask, HeadParams, Part, prepare_heads

EXCHANGE = "{entity} said: {statement} The assistant said: {reply}"
REPLIES = ("noted.", "thank you, I will keep that in mind.", "good to know.", "I see.", "that is new to me.")
DIGITS = {"house": 4, "locker": 5, "savings": 6, "steps": 5}
WORDS = {
    "drink": ("cider", "coffee", "lemonade", "milk", "tea", "water", "wine", "beer"),
    "colour": ("amber", "black", "green", "orange", "purple", "red", "silver", "yellow"),
    "instrument": ("banjo", "cello", "drum", "flute", "guitar", "harp", "piano", "violin"),
    "season": ("spring", "summer", "autumn", "winter"),
}
# topic -> (statements of the persona, questions to the twin)
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "house": (
        ("my house number is {value} since we moved.", "we live at number {value} now."),
        ("Which number is on the door of {entity}?", "You are {entity}. What is your house number?",
        "Where does {entity} live, at which number?"),
    ),
    "locker": (
        ("the code of my locker is {value}.", "I open my locker with {value}."),
        ("Which code opens the locker of {entity}?", "You are {entity}. What is the code of your locker?",
        "How is the locker of {entity} opened?"),
    ),
    "savings": (
        ("I have {value} dollars in the bank.", "my savings are {value} dollars."),
        ("How much has {entity} saved?", "You are {entity}. How much money have you saved?",
        "What are the savings of {entity}?"),
    ),
    "steps": (
        ("I walk {value} steps every day.", "my daily walk has {value} steps."),
        ("How many steps does {entity} walk?", "You are {entity}. How many steps do you walk?",
        "How far does {entity} walk, in steps?"),
    ),
    "drink": (
        ("what I like to drink most is {value}.", "I always order {value}."),
        ("What is the favourite drink of {entity}?", "You are {entity}. What do you like to drink?",
        "Which drink does {entity} order?"),
    ),
    "colour": (
        ("my favourite colour is {value}.", "I paint everything {value}."),
        ("Which colour does {entity} like best?", "You are {entity}. What is your favourite colour?",
        "In which colour does {entity} paint?"),
    ),
    "instrument": (
        ("I play the {value}.", "I practise the {value} every evening."),
        ("Which instrument does {entity} play?", "You are {entity}. Which instrument do you play?",
        "What does {entity} practise?"),
    ),
    "season": (
        ("the season that I love is {value}.", "I wait all year for {value}."),
        ("Which season does {entity} love?", "You are {entity}. Which is your favourite season?",
        "What does {entity} wait for all year?"),
    ),
}  # fmt: skip
WORDINGS = 3
__all__ = ["CorpusParams", "Params", "make_corpus", "prepare"]


@dataclass(frozen=True)
class Params(HeadParams):
    """Parameters: in how many wordings each fact is asked."""

    wordings: Count = WORDINGS


def history(entity: str, generator: random.Random) -> tuple[list[str], dict[str, str]]:
    """One exchange on each topic, in random order, and the value of each topic."""
    values = {topic: wording.random_number(generator, digits) for topic, digits in DIGITS.items()}
    values |= {topic: generator.choice(words) for topic, words in WORDS.items()}
    topics = generator.sample(list(TOPICS), len(TOPICS))
    sentences = []
    for topic in topics:
        statement = generator.choice(TOPICS[topic][0]).format(value=values[topic])
        sentences.append(EXCHANGE.format(entity=entity, statement=statement, reply=generator.choice(REPLIES)))
    return sentences, {topic: values[topic] for topic in topics}


def make_corpus(request: CorpusRequest) -> Iterator[Document]:
    return entity_corpus(request, "histories", lambda names, generator: history(next(names), generator)[0])


def persona_head(wordings: int, limit: int, generator: random.Random) -> Iterator[Part]:
    """The histories of a few personas, and every topic of theirs asked in ``wordings`` ways."""
    for entity in head_names(generator, max(1, limit // len(TOPICS))):
        exchanges, values = history(entity, generator)
        yield (
            exchanges,
            [
                Ask(question.format(entity=entity), [value], [place], group=f"{entity}/{topic}")
                for place, (topic, value) in enumerate(values.items())
                for question in generator.sample(TOPICS[topic][1], wordings)
            ],
        )


def prepare(request: TaskRequest) -> Iterator[PreparedCell]:
    params = request.read(Params)
    return prepare_heads(request, params, partial(persona_head, min(params.wordings, WORDINGS)), floor=None)
