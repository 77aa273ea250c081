"""Ties: where scores say nothing, order and place say nothing either, whoever ranks."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.base import IndexResources, Resources
from baselines.bm25 import BM25Retriever, Okapi
from baselines.dense import build_index
from baselines.hybrid import fuse
from msa_base.kinds import import_kind
from msa_base.records import CorpusView, Document, Overlay, Question, tie_order
from msa_base.specs import IndexSpec, SystemSpec
from msa_base.tables import write_table

TAIL, GOLD, QUESTIONS, DEPTH = 120, range(5000, 5004), 60, 8
CHANCE = DEPTH / (TAIL + len(GOLD))  # of each gold document to be among the first
RULES = {"extractor": "rules", "fact_filter": "names", "phrases": "words"}
KINDS = {
    "bm25": ("bm25", {}),
    "bm25 of large views": ("bm25", {"large_documents": 1}),
    "dense": ("dense", {}),
    "dense, all lists": ("dense", {"probes": 1000}),
    "hybrid": ("hybrid", {"candidates": 12}),
    "rerank": ("rerank", {"first": "bm25", "candidates": 12}),
    "hipporag": ("hipporag", RULES),
    "memory_store": ("memory_store", {"agent": "rules", "phrases": "words"}),
}


class BlindEmbedder:
    """Embeds every text alike, but for noise as batches make it."""

    def __init__(self, *_: object) -> None:
        self.rng = np.random.default_rng(0)

    def documents(self, documents: list[Document]) -> np.ndarray:
        return self.queries([document.text for document in documents])

    def queries(self, texts: list[str]) -> np.ndarray:
        noise = self.rng.uniform(-1e-7, 1e-7, (len(texts), 8))
        return (np.full((len(texts), 8), 8**-0.5) + noise).astype(np.float32)


class BlindReranker:
    """Scores every pair alike."""

    def __init__(self, *_: object) -> None: ...

    def scores(self, pairs: list[tuple[str, Document]]) -> np.ndarray:
        return np.zeros(len(pairs))


def text(number: int) -> str:
    """A statement about two names, for those who keep statements."""
    return f"w{number} . Then Ada Rook{number} paid Ben Dale{number} some coins."


def opened(name: str, documents: list[Document], directory: Path, monkeypatch: pytest.MonkeyPatch):
    kind, params = KINDS[name]
    for module, opener, fake in (
        ("dense", "open_embedder", BlindEmbedder),
        ("parts.embedded", "open_embedder", BlindEmbedder),
        ("rerank", "open_reranker", BlindReranker),
    ):
        monkeypatch.setattr(import_kind(f"baselines.{module}", "baselines", "here"), opener, fake)
    structure = "ivf" if "probes" in params else "flat"
    write_table("corpus", [vars(document) for document in documents], directory / "corpus.parquet")
    spec = IndexSpec("dense", params={"batch": 7, "structure": structure, "lists": 4})
    build_index(spec, IndexResources(None, directory / "corpus.parquet", 1), directory)
    params = {**params, "read_k": 1, "routed_k": DEPTH}
    return import_kind(kind, "baselines", "here").make(
        SystemSpec(kind, "", params=params), Resources(None, directory, None, threads=1, seed=0)
    )


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("laid", [True, False], ids=["overlay", "rebuilt"])
def test_a_question_without_a_clue_finds_gold_at_chance(name: str, laid: bool, tmp_path, monkeypatch) -> None:
    base = [Document(doc_id, text(doc_id), 9) for doc_id in range(TAIL)]
    gold = [Document(doc_id, text(doc_id), 9) for doc_id in GOLD]
    base, overlays = (base, {"head": Overlay("head", tuple(gold))}) if laid else ([*gold, *base], {})
    asked = [Question(f"q{number}", f"zzz{number}", "", 5, "head" if laid else None) for number in range(QUESTIONS)]
    system = opened(name, base, tmp_path, monkeypatch)
    if name == "memory_store":  # its equals have one order for all questions
        asked = asked[:1]
    answers = system.answer(asked, CorpusView(base, overlays))
    found = [list(answer.routed_doc_ids.values())[-1] for answer in answers]
    share = np.mean([doc_id in ids for ids in found for doc_id in GOLD])
    deviation = (CHANCE * (1 - CHANCE) / (len(asked) * len(GOLD))) ** 0.5
    assert abs(share - CHANCE) < 4 * deviation, (share, CHANCE)
    assert all(len(set(ids)) == DEPTH for ids in found)
    assert len(asked) == 1 or len({tuple(ids) for ids in found}) > QUESTIONS / 2


def test_the_case_of_a_head_that_holds_gold_first() -> None:
    head = Overlay("head", (Document(5000, "gold text", 2), Document(5001, "other text", 2)))
    view = CorpusView([Document(n, f"w{n}", 2) for n in range(1000)], {"head": head})
    retriever = BM25Retriever(Okapi())
    retriever.ingest(view)
    asked = [Question("q", f"zzz {number}", "", 8, "head") for number in range(200)]
    found = [[item.doc_id for item in ids] for ids in retriever.rank(asked, view, 4).documents]
    assert sum(5000 in ids for ids in found) <= 6  # 0.8 expected: 4 of 1,002


WORDS = st.text("ab ", max_size=4)


@given(st.lists(WORDS, min_size=1, max_size=12), WORDS, st.randoms(use_true_random=False), st.integers(1, 6))
def test_where_documents_stand_changes_no_ranking(texts, question, rng: random.Random, depth) -> None:
    documents = [Document(100 + number, text, 3) for number, text in enumerate(texts)]
    found = set()
    for large in (10**9, 1):
        for _ in range(3):
            order = rng.sample(documents, len(documents))
            cut = rng.randint(1 if large == 1 else 0, len(order))
            view = CorpusView(order[:cut], {"over": Overlay("over", tuple(order[cut:]))})
            retriever = BM25Retriever(Okapi(large_documents=large))
            if not view.base and large == 1:
                continue
            retriever.ingest(view)
            (ranked,) = retriever.rank([Question("q", question, "", 1, "over")], view, depth).documents
            found.add(tuple(document.doc_id for document in ranked))
    assert len(found) == 1 and len(found.pop()) == min(depth, len(texts))


@given(st.text(max_size=5), st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=50))
def test_no_two_documents_share_a_number(question: str, ids: list[int]) -> None:
    order = tie_order(question, np.asarray(ids, np.int64))
    assert len(set(order.tolist())) == len(ids)
    assert [int(tie_order(question, np.asarray([one]))[0]) for one in ids] == order.tolist()


def test_the_order_of_ties_is_uniform_over_ids_and_questions() -> None:
    ranks = np.asarray([tie_order(f"q{n}", np.arange(50)).argsort().argsort() for n in range(2000)])
    assert abs(ranks.mean(axis=0) - 24.5).max() < 4 * (50**2 / 12 / 2000) ** 0.5


def test_an_overlay_is_read_at_random_rows() -> None:
    head = tuple(Document(5000 + number, "x", 1) for number in range(200))
    replaced = Document(7, "other", 1)
    view = CorpusView([Document(n, "y", 1) for n in range(100)], {"head": Overlay("head", (*head, replaced))})
    order = [item.doc_id for item in view.documents(Question("q", "?", "", 1, "head"))]
    assert sorted(order) == [*range(100), *range(5000, 5200)]
    assert [doc_id for doc_id in order if doc_id < 100] == list(range(100))
    places = np.asarray([place for place, doc_id in enumerate(order) if doc_id >= 5000])
    assert abs(places.mean() - 149.5) < 4 * 300 / (12 * 200) ** 0.5
    ids = [doc_id for doc_id in order if doc_id >= 5000]
    assert ids != sorted(ids)


def test_fusion_prefers_the_first_stage_among_equals_wherever_they_stand() -> None:
    a, b = Document(1, "a", 1), Document(2, "b", 1)
    assert fuse([[a], [b]], [1.0, 1.0], 60) == [a, b] and fuse([[b], [a]], [1.0, 1.0], 60) == [b, a]
