"""The contract command: systems of the tree keep it, and a system from outside that breaks a clause is told which."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.baselines.conftest import Workplace

OUTSIDE = '''
"""A system from outside the tree: it reads the first document and says its first word."""
from baselines.base import System
from msa_base.records import Answer

class Mine(System):
    def __init__(self, fault):
        self.fault, self.seen = fault, 0

    def ingest(self, view):
        self.seen += 1

    def memory_bytes(self, view):
        return -1 if self.fault == "memory" else 0

    def answer(self, questions, view):
        found = []
        for place, question in enumerate(questions):
            document = view.documents(question)[0]
            if self.fault == "base":
                document = view.base[0]
            text = document.text.split()[0]
            if self.fault == "neighbours":
                text += str(place)
            if self.fault == "trace":
                text += str(self.seen)
            routed = {"first": [document.doc_id]}
            found.append(Answer(question.question_id, text, [document.doc_id], routed, 1, 3, 1, 0.1, 0.2))
            if self.fault == "stranger":
                found[-1].cited_doc_ids = [12]
            if self.fault == "time":
                found[-1].total_s = float("nan")
        return found[::-1] if self.fault == "order" else found

def make(spec, resources):
    return Mine(spec.params.get("fault"))
'''
CLAUSES = {
    "order": "one answer a question, in order",
    "time": "answers are well-formed",
    "stranger": "only documents of the question's own corpus are named",
    "neighbours": "an answer does not depend on the questions beside it",
    "trace": "another view in between leaves no trace",
    "memory": "memory is a number of bytes",
    "base": "an overlay is answered as the rebuilt corpus is",
}


@pytest.fixture
def outside(workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A workplace with a system from a package of its own."""
    package = tmp_path / "outside_package"
    package.mkdir()
    (package / "mine.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    return workplace


def contract(workplace: Workplace, system: str, **params: str) -> int:
    """Exit code of the command, on enough questions to meet every sort of overlay."""
    if params or system == "mine":
        entry = {"kind": "outside_package.mine", "title": "Mine", "params": params}
        workplace.systems["systems"]["mine"] = entry
        workplace.write_configs()
    return workplace.command("contract", "--system", system, "--questions", "9")


@pytest.mark.parametrize("system", ["closed_book", "oracle", "rag_bm25", "rag_dense", "full", "mine"])
def test_a_system_that_keeps_every_clause(outside: Workplace, capfd: pytest.CaptureFixture, system: str) -> None:
    if system == "rag_dense":
        assert outside.command("index", "--index", "dense_small", "--corpus", "prose") == 0
    capfd.readouterr()  # what the index's command said
    assert contract(outside, system) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line]
    assert [line for line in lines if not line.startswith("kept: ")] == [] and len(lines) == 7


@pytest.mark.parametrize("fault", list(CLAUSES))
def test_a_broken_clause_is_named(outside: Workplace, capfd: pytest.CaptureFixture, fault: str) -> None:
    assert contract(outside, "mine", fault=fault) == 1
    assert f"BROKEN: {CLAUSES[fault]}" in capfd.readouterr().out.splitlines()
