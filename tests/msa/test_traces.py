"""Traces of a memory agent: what is known after a section, and how a memory says it."""

from __future__ import annotations

from configs.records import Document
from msa.traces import Note, likest, read, wanted, written

CHAIN = [Note("Soft Grid", "Tall Fox", 1), Note("Tall Fox", "88502", 2)]
QUERIES = [Note("a-b", "11", 1), Note("c-d", "22", 2)]
VALUES = [Note("a-b", "11", 1), Note("a-b", "22", 2)]


def test_a_second_hop_counts_once_the_first_is_known() -> None:
    assert wanted(CHAIN, []) == ["Soft Grid"]
    assert read(CHAIN, [], {2}) == []
    assert read(CHAIN, [], {1, 2}) == [0, 1]
    known = read(CHAIN, [], {1})
    assert known == [0] and wanted(CHAIN, known) == ["Soft Grid", "Tall Fox"]
    assert read(CHAIN, known, {2}) == [0, 1]
    assert read(CHAIN, [0, 1], {1, 2}) == [0, 1]


def test_a_memory_opens_as_the_answer_does() -> None:
    assert [written(CHAIN, known, "The answer is") for known in ([], [0], [0, 1])] == [
        "The answer is unknown.", "The answer is that of Tall Fox.", "The answer is 88502.",
    ]  # fmt: skip
    assert written(QUERIES, [1], " The numbers are") == "The numbers are unknown, and 22."
    assert written(VALUES, [1, 0], "They are") == "They are 22, and 11."
    assert written(VALUES, [], "They are") == "They are unknown."


def test_likest_documents_share_most_words() -> None:
    bank = [Document(number, text, 1) for number, text in enumerate(["the fox", "a tall fox", "a grid", "Tall, foxes"])]
    assert likest(bank, [3, 2, 1, 0], ["Tall Fox"], 2) == [1, 3]
