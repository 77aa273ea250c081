"""Retrievers: overlays and prefixes rank as an index rebuilt from scratch, and BM25 scores as rank-bm25 does."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from rank_bm25 import BM25Okapi

from baselines.base import IndexResources, Resources
from baselines.bm25 import BM25, Params, Words
from baselines.dense import Dense, build_index
from baselines.dense import Params as DenseParams
from configs.errors import UserError
from configs.load import IndexSpec
from configs.records import CorpusView, Document, Question
from configs.tables import write_table
from tests.baselines.conftest import make_corpus, make_view

RESOURCES = Resources(None, None, None, threads=1, seed=0)


def rebuilt(view: CorpusView, question: Question) -> tuple[CorpusView, Question]:
    """The same question over its corpus written out, without overlay."""
    plain = Question(question.question_id, question.text, question.answer_prefix, question.max_new_tokens, None)
    return CorpusView(list(view.documents(question)), {}), plain


def open_dense(documents: list[Document], directory: Path) -> Dense:
    """A dense system over an index of some documents."""
    write_table("corpus", [vars(document) for document in documents], directory / "corpus.parquet")
    build_index(
        IndexSpec("dense", params={"batch": 7}), IndexResources(None, directory / "corpus.parquet", 1), directory
    )
    return Dense(DenseParams(), Resources(None, directory, None, 1, 0))


@pytest.mark.parametrize("base", [4, 30, 100])
def test_bm25_answers_under_overlays_as_on_the_rebuilt_corpus(base: int) -> None:
    rng = random.Random(base)
    view, questions = make_view(rng, make_corpus(rng, 100)[:base])
    system = BM25(Params(), RESOURCES)
    for question, answer in zip(questions, system.answer(questions, view), strict=True):
        other_view, plain = rebuilt(view, question)
        (expected,) = BM25(Params(), RESOURCES).answer([plain], other_view)
        assert answer.routed_doc_ids == expected.routed_doc_ids
        assert answer.text == expected.text


def test_bm25_scores_are_those_of_rank_bm25() -> None:
    rng = random.Random(1)
    view, questions = make_view(rng, make_corpus(rng, 60))
    system = BM25(Params(), RESOURCES)
    system.ingest(view)
    for question in questions:
        documents = [re.findall(r"\w+", document.text) for document in view.documents(question)]
        expected = BM25Okapi(documents).get_scores(question.text.split())
        statistics = system._overlay_statistics(view.overlay(question))
        np.testing.assert_allclose(
            statistics.scores(system._words.query(question.text)), expected, rtol=1e-10, atol=1e-12
        )


def test_bm25_floors_the_idf_of_common_words_as_rank_bm25_does() -> None:
    texts = ["the cat", "the dog", "the dog and the bird", "a fish"]
    view = CorpusView([Document(i, text, 3) for i, text in enumerate(texts)], {})
    system = BM25(Params(), RESOURCES)
    system.ingest(view)
    expected = BM25Okapi([text.split() for text in texts]).get_scores(["the", "the", "dog"])
    statistics = system._overlay_statistics(view.overlay(Question("q", "", "", 1)))
    np.testing.assert_allclose(statistics.scores(system._words.query("the the dog")), expected, rtol=1e-12)


@pytest.mark.parametrize("base", [20, 100])
def test_dense_answers_under_overlays_as_on_the_rebuilt_corpus(base: int, tmp_path: Path) -> None:
    rng = random.Random(base)
    corpus = make_corpus(rng, 100)
    view, questions = make_view(rng, corpus[:base])
    system = open_dense(corpus, tmp_path / "whole")
    for question, answer in zip(questions, system.answer(questions, view), strict=True):
        other_view, plain = rebuilt(view, question)
        (expected,) = open_dense(list(other_view.base), tmp_path / question.question_id).answer([plain], other_view)
        assert answer.routed_doc_ids == expected.routed_doc_ids
        assert answer.text == expected.text


def test_dense_never_returns_a_document_beyond_the_prefix_or_a_replaced_text(tmp_path: Path) -> None:
    rng = random.Random(3)
    corpus = make_corpus(rng, 100)
    view, questions = make_view(rng, corpus[:20])
    system = open_dense(corpus, tmp_path)
    for question, chosen in zip(questions, system.select(questions, view), strict=True):
        assert {(document.doc_id, document.text) for document in chosen.documents} <= {
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
        Dense(DenseParams(), Resources(None, tmp_path, None, 1, 0))


@pytest.mark.parametrize(("order", "best_at"), [("best_first", 0), ("best_last", -1)])
def test_the_best_document_stands_where_the_config_says(order: str, best_at: int) -> None:
    rng = random.Random(6)
    view, questions = make_view(rng, make_corpus(rng, 30))
    answers = BM25(Params(read_k=3, order=order), RESOURCES).answer(questions, view)
    for answer in answers:
        assert len(answer.cited_doc_ids) == 3
        assert answer.cited_doc_ids[best_at] == answer.routed_doc_ids["bm25"][0]


def test_bm25_counts_chinese_by_character() -> None:
    words = Words()
    ids, counts = words.bag("北京的iOS 9，北")
    assert dict(zip((list(words.ids)[index] for index in ids), counts.tolist(), strict=True)) == {
        "北": 2, "京": 1, "的": 1, "ios": 1, "9": 1,
    }  # fmt: skip
