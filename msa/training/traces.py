"""Supervised traces of a memory agent: what its memory says after each section of a text (the protocol of MemAgent).

A memory is a line for each thing to find: "Soft Grid: unknown.", later "Soft Grid: 88502.". So a value is decided on
right behind its key, where a small model looks for what followed that key before. The second hop of a chain is looked
for once the first is known, as a reader would.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from msa_base import prompts
from msa_base.records import Document

UNKNOWN = "unknown"
_WORD = re.compile(r"\w+")

# Shares of the drawn steps. In an evaluation one section of a hundred holds something new; here nearly half do, or the
# model learns that none ever does.
STARTED = 0.75  # an earlier section has left a memory; of the others a third have one that says all is unknown
KNOWN = 0.5  # of the things to find, those of which some is known then
NEW = 0.45  # of those not wholly known, those of which the section holds more
LIKE = 0.5  # of the sections, those with documents that resemble what is looked for


@dataclass(frozen=True)
class Note:
    """Something to write down: document ``doc_id`` says that ``key`` has ``value``."""

    key: str
    value: str
    doc_id: int


@dataclass(frozen=True)
class Step:
    """One call of a trace: the memory before, the section, and the memory after."""

    before: str
    section: str
    after: str


def keys_to_find(notes: Sequence[Note], known: Collection[int]) -> list[str]:
    """The keys to look for: those of the question, and those that a known value names."""
    values = {note.value for note in notes}
    found = {notes[number].value for number in known}
    return list(dict.fromkeys(note.key for note in notes if note.key not in values or note.key in found))


def known_after(notes: Sequence[Note], known: Sequence[int], section: Collection[int]) -> list[int]:
    """Numbers of the notes known after a section that holds the documents ``section``, in the order they were found."""
    result = list(known)
    while True:
        keys = keys_to_find(notes, result)
        new = [n for n, note in enumerate(notes) if n not in result and note.doc_id in section and note.key in keys]
        if not new:
            return result
        result += new


def memory_text(notes: Sequence[Note], known: Sequence[int]) -> str:
    """The memory that holds the notes ``known``: key by key, the values of a key in the order they were found."""
    keys = keys_to_find(notes, known)
    found = [(key, [notes[number].value for number in known if notes[number].key == key]) for key in keys]
    return " ".join(f"{key}: {', '.join(values) or UNKNOWN}." for key, values in found)


def most_similar(bank: Sequence[Document], others: Sequence[int], keys: Sequence[str], number: int) -> list[int]:
    """The ``number`` documents among ``others`` that share most words with the keys."""
    words = {word for key in keys for word in _words(key)}
    shared = [-len(words & _words(bank[place].text)) for place in others]
    return [others[rank] for rank in np.argsort(shared, kind="stable")[:number]]


def disjoint(notes: Sequence[Sequence[Note]], order: Sequence[int], number: int) -> list[int]:
    """The first ``number`` problems, in an order, that share no key."""
    chosen: list[int] = []
    keys: set[str] = set()
    for problem in order:
        own = {note.key for note in notes[problem]}
        if not own & keys and len(chosen) < number:
            chosen.append(problem)
            keys |= own
    return chosen


def draw_step(
    problems: Sequence[Sequence[Note]], bank: Sequence[Document], documents: Sequence[int], rng: np.random.Generator
) -> Step:
    """One step at a random place of a trace that follows some problems at once.

    Args:
        problems: the notes of each, without a key in common.
        documents: fewest and most documents of the section.
    """
    started = bool(rng.random() < STARTED)
    size = int(rng.integers(documents[0], documents[1] + 1))
    states, new = [], []
    for notes in problems:
        order = rng.permutation(list(dict.fromkeys(note.doc_id for note in notes))).tolist()
        known: list[int] = []
        if started and rng.random() < KNOWN:
            for doc_id in order[: int(rng.integers(1, len(order) + 1))]:
                known = known_after(notes, known, {doc_id})
        rest = [doc_id for doc_id in order if doc_id not in {notes[number].doc_id for number in known}]
        if rest and len(new) < size and rng.random() < NEW:
            new.append(rest[0])
        states.append(known)
    pairs = list(zip(problems, states, strict=True))
    keys = [key for notes, known in pairs for key in keys_to_find(notes, known)]
    section = _section(new, {note.doc_id for notes in problems for note in notes}, keys, bank, size, rng)
    shown = {document.doc_id for document in section}
    before = " ".join(memory_text(notes, known) for notes, known in pairs)
    return Step(
        before if started or rng.random() < 1 / 3 else prompts.NO_MEMORY,
        "\n".join(document.text for document in section),
        " ".join(memory_text(notes, known_after(notes, known, shown)) for notes, known in pairs),
    )


def _section(
    new: list[int], gold: set[int], keys: list[str], bank: Sequence[Document], size: int, rng: np.random.Generator
) -> list[Document]:
    """The documents ``new``, filled up to ``size`` with others that are not ``gold``, in random order."""
    place = {document.doc_id: number for number, document in enumerate(bank)}
    others = rng.permutation([number for number, document in enumerate(bank) if document.doc_id not in gold]).tolist()
    filling = most_similar(bank, others, keys, 3)[: int(rng.integers(3))] if rng.random() < LIKE else []
    filling += [number for number in others[:size] if number not in filling]
    shown = list(dict.fromkeys(place[doc_id] for doc_id in new))
    return [bank[number] for number in rng.permutation([*shown, *filling[: max(0, size - len(shown))]]).tolist()]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
