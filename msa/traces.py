"""Supervised traces of a memory agent: what its memory says after each section of a text (the protocol of MemAgent).

A trace's memory is the opening of the answer with what is known of it, in the very form in which a reader answers: "The answer is
unknown.", then, on the way through a chain, "The answer is that of Soft Grid.", then "The answer is 88502.". The second hop
of a chain is looked for only once the first is known, as a reader would.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from configs.records import Document

UNKNOWN, BRIDGE = "unknown", "that of"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Note:
    """Something to write down: document ``doc_id`` says that ``key`` has ``value``."""

    key: str
    value: str
    doc_id: int


def wanted(notes: Sequence[Note], known: Collection[int]) -> list[str]:
    """The keys to look for: those asked, and those that a known value names."""
    values = {note.value for note in notes}
    found = {notes[number].value for number in known}
    return list(dict.fromkeys(note.key for note in notes if note.key not in values or note.key in found))


def read(notes: Sequence[Note], known: Sequence[int], section: Collection[int]) -> list[int]:
    """Numbers of the notes known after a section that holds the documents ``section``, in the order they were found."""
    result = list(known)
    while True:
        keys = wanted(notes, result)
        new = [n for n, note in enumerate(notes) if n not in result and note.doc_id in section and note.key in keys]
        if not new:
            return result
        result += new


def written(notes: Sequence[Note], known: Sequence[int], answer_prefix: str) -> str:
    """The memory that holds the notes ``known``: key by key, of a key with several values in the order they were found."""
    keys, parts = {note.key for note in notes}, []
    for key in dict.fromkeys(note.key for note in notes if note.value not in keys):
        values = [notes[number].value for number in known if notes[number].key == key]
        bridged = any(notes[number].value == key for number in known)
        parts += values or [f"{BRIDGE} {key}" if bridged else UNKNOWN]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return f"{answer_prefix.strip()} {listed}."


def likest(bank: Sequence[Document], others: Sequence[int], keys: Sequence[str], number: int) -> list[int]:
    """The ``number`` documents among ``others`` that share most words with the keys: what a reader confuses them with."""
    words = {word for key in keys for word in _WORD.findall(key.lower())}
    shared = [-len(words & set(_WORD.findall(bank[place].text.lower()))) for place in others]
    return [others[rank] for rank in np.argsort(shared, kind="stable")[:number]]
