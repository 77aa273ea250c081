"""Retrievers: BM25 scores as rank-bm25 does, clusters, fusion and reranking do as their formulas say."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_bm25 import BM25Okapi

from baselines import bm25, dense, hybrid, rerank
from baselines.base import IndexResources, Resources
from baselines.hybrid import fuse
from baselines.parts.retrieval import RetrievalSystem
from msa_base.errors import UserError
from msa_base.records import CorpusView, Document, Question, tie_order, without_costs
from msa_base.specs import IndexSpec, SystemSpec
from msa_base.tables import write_table
from tests.baselines.conftest import FakeReranker, make_corpus, make_view, sentence

RESOURCES = Resources(None, None, None, threads=1, seed=0)


def open_bm25(**params: Any) -> RetrievalSystem:
    """A BM25 system."""
    return bm25.make(SystemSpec("bm25", "", params=params), RESOURCES)


def open_dense(documents: list[Document], directory: Path, structure: str = "flat", **params: Any) -> RetrievalSystem:
    """A dense system over an index of some documents."""
    write_table("corpus", [vars(document) for document in documents], directory / "corpus.parquet")
    spec = IndexSpec("dense", params={"batch": 7, "structure": structure})
    dense.build_index(spec, IndexResources(None, directory / "corpus.parquet", 1), directory)
    return dense.make(SystemSpec("dense", "", params=params), Resources(None, directory, None, 1, 0))


def bm25_scores(system: RetrievalSystem, view: CorpusView, question: Question) -> np.ndarray:
    """Scores of a question's whole corpus."""
    statistics = system.retriever.statistics(view.documents(question))
    return statistics.scores(system.retriever._words.query(question.text))


@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_bm25_scores_are_those_of_rank_bm25(epsilon: float) -> None:
    rng = random.Random(1)
    view, questions = make_view(rng, make_corpus(rng, 60))
    system = open_bm25(epsilon=epsilon)
    system.ingest(view)
    for question in questions:
        documents = [re.findall(r"\w+", document.text) for document in view.documents(question)]
        expected = BM25Okapi(documents, epsilon=epsilon).get_scores(question.text.split())
        np.testing.assert_allclose(bm25_scores(system, view, question), expected, rtol=1e-10, atol=1e-12)


def test_bm25_floors_the_idf_of_common_words_as_rank_bm25_does() -> None:
    texts = ["the cat", "the dog", "the dog and the bird", "a fish"]
    view = CorpusView([Document(i, text, 3) for i, text in enumerate(texts)], {})
    system = open_bm25(epsilon=0.25)
    system.ingest(view)
    expected = BM25Okapi([text.split() for text in texts]).get_scores(["the", "the", "dog"])
    found = bm25_scores(system, view, Question("q", "the the dog", "", 1))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def ranked(system: RetrievalSystem, questions: list[Question], view: CorpusView, depth: int) -> list[list[int]]:
    """Ids as the retriever ranks them."""
    system.ingest(view)
    found = system.retriever.rank(questions, view, depth)
    return [[document.doc_id for document in documents] for documents in found.documents]


@pytest.mark.parametrize("epsilon", [0.0, 0.25])
@pytest.mark.parametrize(("base", "depth"), [(4, 3), (30, 16), (600, 5), (600, 100)])
def test_a_large_view_ranks_alike_with_bm25s(base: int, depth: int, epsilon: float) -> None:
    rng = random.Random(base)
    view, questions = make_view(rng, make_corpus(rng, 600)[:base])
    large = open_bm25(large_documents=1, epsilon=epsilon)
    assert ranked(large, questions, view, depth) == ranked(open_bm25(epsilon=epsilon), questions, view, depth)
    assert isinstance(large.retriever._base, bm25.Proposals)
    for question, answer in zip(questions, large.answer(questions, view), strict=True):
        documents = [re.findall(r"\w+", document.text) for document in view.documents(question)]
        scores = BM25Okapi(documents, epsilon=epsilon).get_scores(question.text.split())
        ids = np.asarray([document.doc_id for document in view.documents(question)])
        best = ids[np.lexsort((tie_order(question.text, ids), -np.round(scores, 9)))[:16]].tolist()
        assert answer.routed_doc_ids["bm25"] == best


@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_what_proposes_candidates_scores_as_what_ranks_them(epsilon: float) -> None:
    rng = random.Random(3)
    documents = [Document(number, sentence(rng, 6), 9) for number in range(60)]
    view, question = CorpusView(documents, {}), Question("q", sentence(rng, 5), "", 8)
    exact, large = open_bm25(epsilon=epsilon), open_bm25(epsilon=epsilon, large_documents=1)
    exact.ingest(view)
    large.ingest(view)
    proposals, query = large.retriever._base, large.retriever._words.query(question.text)
    expected = bm25_scores(exact, view, question)
    found = proposals._index.get_scores_from_ids(query) * 2.5  # Lucene leaves out k1 + 1, which changes no order
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    unknown = [len(proposals.frequency), len(proposals.frequency) + 7]  # words of overlays
    best = proposals.candidates([*query, *unknown], 1, lambda rows: rows)
    assert expected[best[0]] == pytest.approx(expected.max())
    assert min(exact.retriever.memory_bytes(), large.retriever.memory_bytes()) > 60 * 6


def test_bm25s_by_itself_gives_the_same_scores_where_no_idf_is_floored() -> None:
    import bm25s

    rng = random.Random(2)
    view = CorpusView([Document(number, sentence(rng, 6), 9) for number in range(400)], {})
    system = open_bm25()
    system.ingest(view)
    index = bm25s.BM25(method="atire", idf_method="robertson", k1=1.5, b=0.75)
    index.index([document.text.split() for document in view.base], show_progress=False)
    for _ in range(20):
        question = Question("q", sentence(rng, 3), "", 8)
        found, expected = bm25_scores(system, view, question), index.get_scores(question.text.split())
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert found.max() > 0


@pytest.mark.parametrize("probes", [1000, 1])
def test_clusters_find_what_a_flat_search_finds_among_the_lists_they_probe(probes: int, tmp_path: Path) -> None:
    rng = random.Random(7)
    corpus = make_corpus(rng, 300)
    view, questions = make_view(rng, corpus[:200])
    flat = ranked(open_dense(corpus, tmp_path / "flat"), questions, view, 10)
    clustered = open_dense(corpus, tmp_path / "ivf", "ivf", probes=probes)
    found = ranked(clustered, questions, view, 10)
    visible = [{document.doc_id for document in view.documents(question)} for question in questions]
    assert all(set(ids) <= allowed for ids, allowed in zip(found, visible, strict=True))
    if probes == 1000:
        assert found == flat  # every list
    else:
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(found, flat, strict=True)]
        assert 0 < np.mean(shared) < 1


def test_reciprocal_ranks_are_fused_as_the_formula_says() -> None:
    a, b, c, d = (Document(i, "", 1) for i in range(4))
    # a: 1/61 + 1/63, b: 1/62 + 1/61, c: 1/63, d: 1/62
    assert fuse([[a, b, c], [b, d, a]], [1.0, 1.0], 60) == [b, a, d, c]
    # a: 1 + 0.1/3, b: 1/2 + 0.1, c: 1/3, d: 0.1/2
    assert fuse([[a, b, c], [b, d, a]], [1.0, 0.1], 0) == [a, b, c, d]
    assert fuse([[c], [a]], [1.0, 1.0], 60) == [c, a]  # equals: the first stage's first


def open_over(kind: Any, corpus: list[Document], directory: Path, **params: Any) -> RetrievalSystem:
    """A system of stages over a dense index of some documents."""
    open_dense(corpus, directory)
    return kind.make(SystemSpec("x", "", params=params), Resources(None, directory, None, 1, 0))


def test_reranking_puts_the_best_scored_candidates_first_and_scores_a_pair_once(tmp_path: Path) -> None:
    rng = random.Random(8)
    corpus = make_corpus(rng, 60)
    view, questions = make_view(rng, corpus)
    system = open_over(rerank, corpus, tmp_path, first="bm25", candidates=10)
    first = ranked(open_bm25(), questions, view, 20)
    found = ranked(system, questions, view, 20)
    for question, before, after in zip(questions, first, found, strict=True):
        text = {document.doc_id: document.text for document in view.documents(question)}
        scores = [FakeReranker.score(question.text, text[doc_id]) for doc_id in after[:10]]
        assert scores == sorted(scores, reverse=True)
        assert sorted(after[:10]) == sorted(before[:10]) and after[10:] == before[10:]
    scored = FakeReranker.calls
    assert scored == len({(q.text, i, q.overlay_id) for q, ids in zip(questions, first, strict=True) for i in ids[:10]})
    assert ranked(system, questions, view, 20) == found and FakeReranker.calls == scored


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        (rerank, {"first": "oracle"}, "kind 'oracle' ranks no documents"),
        (rerank, {"first": "bm26"}, "there is no module baselines.bm26"),
        (rerank, {"first": "bm25", "first_params": {"kk": 1}}, "first_params: unknown key 'kk'"),
        (
            hybrid,
            {"stages": {"bm25": {"b": 2.0}, "dense": {}}},
            "stages: bm25: key 'b' must be less than or equal to 1, found 2.0",
        ),
        (hybrid, {"stages": {"bm25": {}}}, "key 'stages'"),
        (hybrid, {"weights": {"sparse": 1.0}}, "weights: no stage sparse"),
        (rerank, {"candidates": 0}, "key 'candidates' must be greater than 0, found 0"),
    ],
)
def test_a_bad_stage_names_its_place(kind: Any, params: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        kind.make(SystemSpec("x", "", params=params), RESOURCES)
    assert str(raised.value).startswith("systems.yaml: params of kind")


def test_dense_never_returns_a_document_beyond_the_prefix_or_a_replaced_text(tmp_path: Path) -> None:
    rng = random.Random(3)
    corpus = make_corpus(rng, 100)
    view, questions = make_view(rng, corpus[:20])
    system = open_dense(corpus, tmp_path)
    system.ingest(view)
    for question, found in zip(questions, system.select(questions, view), strict=True):
        assert {(document.doc_id, document.text) for document in found.documents} <= {
            (document.doc_id, document.text) for document in view.documents(question)
        }


def test_dense_refuses_an_index_of_another_corpus(tmp_path: Path) -> None:
    rng = random.Random(4)
    system = open_dense(make_corpus(rng, 30), tmp_path)
    view, questions = make_view(rng, make_corpus(rng, 20))
    with pytest.raises(UserError, match="another corpus"):
        system.answer(questions, view)


def test_a_broken_index_is_one_clear_message(tmp_path: Path) -> None:
    open_dense(make_corpus(random.Random(5), 10), tmp_path)
    (tmp_path / "embeddings.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"embeddings\.safetensors: not a readable index"):
        dense.make(SystemSpec("dense", ""), Resources(None, tmp_path, None, 1, 0))


@pytest.mark.parametrize(("order", "best_at"), [("best_first", 0), ("best_last", -1)])
def test_the_best_document_stands_where_the_config_says(order: str, best_at: int) -> None:
    rng = random.Random(6)
    view, questions = make_view(rng, make_corpus(rng, 30))
    answers = open_bm25(read_k=3, order=order).answer(questions, view)
    for answer in answers:
        assert len(answer.cited_doc_ids) == 3
        assert answer.cited_doc_ids[best_at] == answer.routed_doc_ids["bm25"][0]


def test_bm25_counts_chinese_by_character() -> None:
    words = bm25.Words()
    ids, counts = words.bag("北京的iOS 9，北")
    assert dict(zip((list(words.ids)[index] for index in ids), counts.tolist(), strict=True)) == {
        "北": 2, "京": 1, "的": 1, "ios": 1, "9": 1,
    }  # fmt: skip


def test_an_older_bm25_view_is_asked_for_words_that_only_a_newer_one_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    view = CorpusView([Document(1, "the cat", 3), Document(2, "a dog", 3), Document(3, "a fish", 3)], {})
    edited = CorpusView([*view.base, Document(4, "zebra and cat", 4)], {})
    question = Question("q", "zebra cat", "", 4)
    old = open_bm25()
    old.ingest(view)

    def answers() -> list[list[int]]:
        return [
            system.answer([question], of)[0].routed_doc_ids["bm25"][:2] for system, of in ((old, view), (new, edited))
        ]

    new = old.over(edited)
    assert answers() == [[1, *answers()[0][1:]], [4, 1]]
    # documents of an edit are counted between two steps of counting an overlay
    counted, (view, questions) = bm25.Postings.__init__, make_view(random.Random(1), make_corpus(random.Random(1), 20))
    system = open_bm25()
    system.ingest(view)

    def count_more(self: bm25.Postings, documents: list[Document], words: bm25.Words) -> None:
        counted(self, documents, words)
        words.bag(f"new{len(words.ids)} words{len(words.ids)}")

    wanted = without_costs(open_bm25().answer(questions, view))
    monkeypatch.setattr(bm25.Postings, "__init__", count_more)
    assert without_costs(system.answer(questions, view)) == wanted


@pytest.mark.parametrize("structure", ["flat", "ivf"])
def test_an_edited_dense_corpus_ranks_as_one_indexed_anew(structure: str, tmp_path: Path) -> None:
    rng = random.Random(3)
    base = make_corpus(rng, 40)
    view, questions = make_view(rng, base)
    edited = [*base[3:], Document(base[1].doc_id, sentence(rng), 40), Document(7, sentence(rng), 40)]
    system = open_dense(base, tmp_path, structure, probes=100)
    system.ingest(view)
    before = without_costs(system.answer(questions[:1], view))
    over = system.over(CorpusView(edited, {}))
    asked = [Question(item.question_id, item.text, "", 8) for item in questions]
    (tmp_path / "new").mkdir()
    anew = open_dense(edited, tmp_path / "new", structure, probes=100).answer(asked, CorpusView(edited, {}))
    assert without_costs(over.answer(asked, over._view)) == without_costs(anew)
    assert without_costs(system.answer(questions[:1], view)) == before
