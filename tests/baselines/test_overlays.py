"""Overlays are an optimisation: every system that retrieves answers as on the corpus written out, at random."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baselines.base import IndexResources, Resources, System
from baselines.dense import build_index
from msa_base.kinds import import_kind
from msa_base.records import CorpusView, Document, Overlay, Question
from msa_base.specs import IndexSpec, SystemSpec
from msa_base.tables import write_table
from tests.baselines.conftest import sentence

NAMES = ["Ada Rook", "Ben Dale", "Cy Moss", "Dan Pike", "Eve Holt", "Flo Wynn"]
RULES = {"extractor": "rules", "fact_filter": "names", "phrases": "both", "synonym_threshold": 0.6, "synonym_cap": 2}
STAGED = {"candidates": 12, "routed_k": 8}
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "bm25": ("bm25", {"epsilon": 0.25}),
    "bm25 of large views": ("bm25", {"large_documents": 1, "read_k": 2}),
    "dense": ("dense", {"read_k": 2}),
    "dense, all lists": ("dense", {"probes": 1000}),
    "hybrid": ("hybrid", STAGED),
    "rerank": ("rerank", {"first": "bm25", **STAGED}),
    "hipporag": ("hipporag", {"read_k": 2, "routed_k": 20, **RULES}),
    "memory_store": ("memory_store", {"agent": "rules", "phrases": "words", "read_k": 3, "nearness": 0.5}),
    "long_context": ("long_context", {"window_tokens": 10_000}),
}


def drawn(rng: random.Random) -> tuple[list[Document], CorpusView, list[Question]]:
    """A tail, a view of a prefix of it, and questions of every sort of overlay."""

    def text() -> str:
        one, other = rng.sample(NAMES, 2)
        met, paid = rng.choice(("met", "left", "saw")), rng.choice(NAMES)
        return f"so {one} {met} {other} . then {paid} paid {rng.randint(2, 9)} coins. {sentence(rng, 12)}"

    tail = [Document(doc_id, text(), 20) for doc_id in rng.sample(range(100, 999), 40)]
    base = tail[: rng.choice((1, 4, 25, 40))]
    adding = [Document(doc_id, text(), 20) for doc_id in rng.sample(range(100), 4)]
    replacing = [Document(document.doc_id, text(), 20) for document in rng.sample(base, min(3, len(base)))]
    rare = [Document(1000, "zyzzyva " + text(), 21), Document(base[0].doc_id, "zyzzyva", 2)]
    both = rng.sample([*adding[:2], *replacing[:2]], len(adding[:2] + replacing[:2]))
    named = {"adding": adding, "replacing": replacing, "both": both, "rare": rare}
    view = CorpusView(base, {name: Overlay(name, tuple(documents)) for name, documents in named.items()})
    questions = [
        Question(f"q{place}", f"whom did {rng.choice(NAMES)} see ? {sentence(rng, 3)} zyzzyva unseen", "", 5, name)
        for place, name in enumerate([None, *named, *named])
    ]
    return tail, view, questions


def opened(name: str, documents: list[Document], directory: Path) -> System:
    """A system with a dense index of some documents."""
    kind, params = SYSTEMS[name]
    structure = "ivf" if "probes" in params else "flat"
    write_table("corpus", [vars(document) for document in documents], directory / "corpus.parquet")
    build_index(
        IndexSpec("dense", params={"batch": 7, "structure": structure}),
        IndexResources(None, directory / "corpus.parquet", 1),
        directory,
    )
    return import_kind(kind, "baselines", "here").make(
        SystemSpec(kind, "", params=params), Resources(None, directory, None, threads=1, seed=0)
    )


@pytest.mark.parametrize("name", list(SYSTEMS))
@pytest.mark.parametrize("seed", range(3))
def test_overlays_are_answered_as_the_rebuilt_corpus_is(name: str, seed: int, tmp_path: Path) -> None:
    tail, view, questions = drawn(random.Random(seed))
    system = opened(name, tail, tmp_path / "tail")
    for question, answer in zip(questions, system.answer(questions, view), strict=True):
        documents = list(view.documents(question))
        other = opened(name, documents, tmp_path / question.question_id)
        (expected,) = other.answer([replace(question, overlay_id=None)], CorpusView(documents, {}))
        assert answer.routed_doc_ids == expected.routed_doc_ids
        assert answer.text == expected.text
