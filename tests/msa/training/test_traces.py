"""Traces of a memory agent: what is known after a section, and how a memory says it."""

from __future__ import annotations

import numpy as np

from msa.training.traces import Note, disjoint, draw_step, keys_to_find, known_after, memory_text, most_similar
from msa_base import prompts
from msa_base.records import Document

CHAIN = [Note("Soft Grid", "Tall Fox", 1), Note("Tall Fox", "88502", 2)]
QUERIES = [Note("a-b", "11", 1), Note("c-d", "22", 2)]
VALUES = [Note("a-b", "11", 1), Note("a-b", "22", 2)]


def test_a_second_hop_counts_once_the_first_is_known() -> None:
    assert keys_to_find(CHAIN, []) == ["Soft Grid"]
    assert known_after(CHAIN, [], {2}) == []
    assert known_after(CHAIN, [], {1, 2}) == [0, 1]
    known = known_after(CHAIN, [], {1})
    assert known == [0] and keys_to_find(CHAIN, known) == ["Soft Grid", "Tall Fox"]
    assert known_after(CHAIN, known, {2}) == [0, 1]
    assert known_after(CHAIN, [0, 1], {1, 2}) == [0, 1]


def test_a_memory_has_a_line_for_each_thing_to_find() -> None:
    assert [memory_text(CHAIN, known) for known in ([], [0], [0, 1])] == [
        "Soft Grid: unknown.", "Soft Grid: Tall Fox. Tall Fox: unknown.", "Soft Grid: Tall Fox. Tall Fox: 88502.",
    ]  # fmt: skip
    assert memory_text(QUERIES, [1]) == "a-b: unknown. c-d: 22."
    assert memory_text(VALUES, [1, 0]) == "a-b: 22, 11."
    assert memory_text(VALUES, []) == "a-b: unknown."


def test_problems_of_a_row_share_no_key() -> None:
    notes = [
        [Note("a", "1", 1)],
        [Note("a", "2", 2)],
        [Note("b", "1", 3), Note("c", "2", 4)],
        [Note("c", "3", 5)],
        [Note("d", "1", 6)],
    ]
    assert disjoint(notes, [0, 1, 2, 3, 4], 3) == [0, 2, 4]
    assert disjoint(notes, [3, 3, 0], 1) == [3]


def test_a_step_leads_from_its_memory_and_section_to_the_new_memory() -> None:
    """Every new memory follows from what its message holds, in each of the cases that a trace can be in."""
    bank = [
        Document(number, f"The height of Tall {noun} is {number}{number}{number}.", 9)
        for number, noun in enumerate("ABCDEFGH")
    ]
    notes = [Note(f"Tall {noun}", str(number) * 3, number) for number, noun in enumerate("ABCDEFGH")]
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        own = [notes[n] for n in rng.permutation(8)[: int(rng.integers(1, 3))]]
        step = draw_step([[note] for note in own], bank, (1, 3), rng)
        assert 1 <= len(step.section.splitlines()) <= 3
        assert [line.split(":")[0] for line in step.after.split(". ")] == [note.key for note in own]
        for note in own:
            unknown, line = f"{note.key}: unknown.", f"{note.key}: {note.value}."
            if note.value in step.section:
                assert line in step.after and line not in step.before
                seen.add("new")
            elif line in step.before:
                assert line in step.after
                seen.add("kept")
            else:
                assert unknown in step.after and (unknown in step.before or step.before == prompts.NO_MEMORY)
                seen.add("unknown" if unknown in step.before else "begun")
    assert seen == {"new", "kept", "unknown", "begun"}


def test_most_similar_documents_share_most_words() -> None:
    bank = [Document(number, text, 1) for number, text in enumerate(["the fox", "a tall fox", "a grid", "Tall, foxes"])]
    assert most_similar(bank, [3, 2, 1, 0], ["Tall Fox"], 2) == [1, 3]
