"""Persona over a long dialogue history (generated): what somebody has said of themselves, asked of their digital twin.

A history is exchanges of one persona with an assistant, each a document that carries real prose; the tail is the histories
of others. Every fact is asked in several wordings, so that a twin that answers one and not another is seen
(``every_wording``). Half of the facts are numbers, half are words of a small set.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from configs.load import build
from configs.records import Document
from tasks import wording
from tasks.base import Cell, CorpusRequest, TaskRequest
from tasks.scaling import (
    Ask,
    HeadSpec,
    TailSpec,
    checked_heads,
    constant_floor,
    head_names,
    make_heads,
    prepare_heads,
    stream,
    tail_names,
)

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
        ("Which number is on the door of {entity}?", "You are {entity}. What is your house number?", "Where does {entity} live, at which number?"),
    ),
    "locker": (
        ("the code of my locker is {value}.", "I open my locker with {value}."),
        ("Which code opens the locker of {entity}?", "You are {entity}. What is the code of your locker?", "How is the locker of {entity} opened?"),
    ),
    "savings": (
        ("I have {value} dollars in the bank.", "my savings are {value} dollars."),
        ("How much has {entity} saved?", "You are {entity}. How much money have you saved?", "What are the savings of {entity}?"),
    ),
    "steps": (
        ("I walk {value} steps every day.", "my daily walk has {value} steps."),
        ("How many steps does {entity} walk?", "You are {entity}. How many steps do you walk?", "How far does {entity} walk, in steps?"),
    ),
    "drink": (
        ("what I like to drink most is {value}.", "I always order {value}."),
        ("What is the favourite drink of {entity}?", "You are {entity}. What do you like to drink?", "Which drink does {entity} order?"),
    ),
    "colour": (
        ("my favourite colour is {value}.", "I paint everything {value}."),
        ("Which colour does {entity} like best?", "You are {entity}. What is your favourite colour?", "In which colour does {entity} paint?"),
    ),
    "instrument": (
        ("I play the {value}.", "I practise the {value} every evening."),
        ("Which instrument does {entity} play?", "You are {entity}. Which instrument do you play?", "What does {entity} practise?"),
    ),
    "season": (
        ("the season that I love is {value}.", "I wait all year for {value}."),
        ("Which season does {entity} love?", "You are {entity}. Which is your favourite season?", "What does {entity} wait for all year?"),
    ),
}  # fmt: skip
WORDINGS = 3


@dataclass(frozen=True)
class PersonaSpec(HeadSpec):
    """Parameters: in how many wordings each fact is asked."""

    wordings: int = WORDINGS


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
    """Stream the histories of others (tasks.base.CorpusModule)."""
    spec: TailSpec = build(TailSpec, dict(request.params), request.where)
    generator = random.Random(f"{spec.seed}/{request.name}/histories")
    names = tail_names(spec, generator, request.where)
    yield from stream(request, spec, (history(name, generator)[0] for name in names))


def persona_head(wordings: int, limit: int, generator: random.Random) -> tuple[list[str], list[Ask]]:
    """The histories of a few personas, and every topic of theirs asked in ``wordings`` ways."""
    sentences: list[str] = []
    asks = []
    for entity in head_names(generator, max(1, limit // len(TOPICS))):
        exchanges, values = history(entity, generator)
        for index, (topic, value) in enumerate(values.items(), start=len(sentences)):
            for question in generator.sample(TOPICS[topic][1], wordings):
                asks.append(Ask(question.format(entity=entity), [value], [index], group=f"{entity}/{topic}"))
        sentences += exchanges
    return sentences, asks


def prepare(request: TaskRequest) -> Iterator[Cell]:
    """All contexts of the persona task (tasks.base.TaskModule)."""
    spec = checked_heads(request, PersonaSpec, wordings=1)
    number = min(spec.wordings, WORDINGS)
    heads = make_heads(request, spec, lambda limit, generator: persona_head(number, limit, generator))
    yield from prepare_heads(request, spec, heads, floor=constant_floor(heads))
