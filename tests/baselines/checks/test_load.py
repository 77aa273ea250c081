"""The load command: systems that are edited while threads ask them answer right, and one that is stale is told."""

from __future__ import annotations

import csv
import random

import pytest

from baselines.checks import load
from msa_base.records import CorpusView
from tests.baselines.conftest import Workplace, make_corpus

QUICK = ("--questions", "120", "--questions-per-edit", "3", "--edited", "3", "--clients", "4")


def run(workplace: Workplace, *systems: str, index: bool = False) -> int:
    """Exit code of the command on a few questions."""
    if index:
        assert workplace.command("index", "--index", "dense_small", "--corpus", "prose") == 0
    return workplace.command("load", "--systems", ",".join(systems), *QUICK, "--out", str(workplace.results / "bench"))


def test_edited_systems_answer_as_their_rebuilt_selves(workplace: Workplace, capfd: pytest.CaptureFixture) -> None:
    assert run(workplace, "rag_bm25", "rag_dense", index=True) == 0
    assert "0 of 480 answers are wrong or stale" in capfd.readouterr().out
    with open(workplace.results / "bench" / "load.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["system"], row["edits"] != "0") for row in rows] == [
        ("rag_bm25", False), ("rag_bm25", True), ("rag_dense", False), ("rag_dense", True),
    ]  # fmt: skip
    assert {row["edits"] for row in rows} == {"0", "40"}
    # the check could see staleness: many answers differ from those of the state before
    assert all(int(row["telling"]) > 10 for row in rows if row["share_of_unedited"])


def test_one_stale_answer_is_told_with_its_state() -> None:
    question = load.Question("q", "", "", 1)
    scene = load.Scene([], [question], [{"q": ("q", "old", [1])}, {"q": ("q", "new", [2])}])
    editor = load.Editor(None, [], [(0.0, 0.0, 0), (1.0, 1.5, 1)])
    times = {"before": (0.1, 0.2), "meanwhile": (1.1, 1.6), "behind": (1.6, 1.7)}
    old, new = ({name: load.Asked(question, *at, right["q"]) for name, at in times.items()} for right in scene.right)
    assert load.wrong(scene, editor, [old["before"], old["meanwhile"], new["meanwhile"], new["behind"]]) == []
    (early,), (late,) = (load.wrong(scene, editor, [asked]) for asked in (new["before"], old["behind"]))
    assert "is that of state 1; there stood [0]" in early and "is that of state 0; there stood [1]" in late
    assert scene.is_telling(1, "q")


def test_a_system_that_keeps_an_old_memory_is_told(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    edit, passed = load.ServedSystem.edit, []

    def edit_a_few(self: load.ServedSystem, view: CorpusView) -> None:
        passed.append(view)
        if len(passed) < 6:
            edit(self, view)

    monkeypatch.setattr(load.ServedSystem, "edit", edit_a_few)
    assert run(workplace, "rag_bm25") == 1
    assert "is that of state" in capfd.readouterr().out


def test_a_mixed_answer_is_told(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    answer, count = load.ServedSystem.answer, iter(range(10**6))

    def mix(self: load.ServedSystem, question: load.Question) -> load.Said:
        said = answer(self, question)
        return said if next(count) != 100 else (*said[:1], said[1] + "x", *said[2:])

    monkeypatch.setattr(load.ServedSystem, "answer", mix)
    assert run(workplace, "rag_bm25") == 1
    assert "1 of 240 answers are wrong or stale" in capfd.readouterr().out


def test_a_system_that_cannot_be_edited_is_named(workplace: Workplace, capfd: pytest.CaptureFixture) -> None:
    assert run(workplace, "full") == 2
    assert "kind 'long_context' cannot be edited while it answers" in capfd.readouterr().err


def test_a_state_differs_from_the_next_by_one_document_and_from_every_other() -> None:
    documents = make_corpus(random.Random(1), 12)
    states = load.circle(documents, [documents[place].doc_id for place in (2, 3, 7)])
    assert len(states) == 9 and len({frozenset(state) for state in states}) == 9
    for before, after in zip(states, states[1:] + states[:1], strict=True):
        assert len({document.doc_id for document in {*before} ^ {*after}}) == 1


def test_the_states_that_stood() -> None:
    editor = load.Editor(None, [], [(0.0, 0.0, 0), (1.0, 1.5, 1), (3.0, 3.5, 2)])
    assert editor.standing(0.2, 0.9) == [0]
    assert editor.standing(1.2, 1.4) == [1, 0]
    assert editor.standing(1.6, 2.9) == [1]
    assert editor.standing(1.6, 3.2) == [2, 1]
    assert editor.standing(4.0, 5.0) == [2]
