"""Scaling and two-hop tasks: heads over a growing tail."""

from __future__ import annotations

import hashlib
import json
import random
import re
from functools import partial
from itertools import islice

import pytest

from msa_base.errors import UserError
from tasks import agent_history, aggregate, editing, multihop, persona, scaling, summary
from tasks.parts import heads, wording

KINDS = {"scaling": scaling, "multihop": multihop}
NAME = re.compile(r"\b[A-Z][a-z]+ [A-Z][a-z]+\b")
PARAMS = {"replicates": 2, "head_tokens": 3000}


@pytest.fixture(params=KINDS)
def prepared(request, make):
    """(module, tail, task request, cells) of a kind."""
    module = KINDS[request.param]
    tail = make.tail(module, request.param, 16384)
    task = make.task(request.param, tail, 20, **PARAMS)
    return module, tail, task, list(module.prepare(task))


def test_every_context_asks_the_same_of_a_growing_tail(prepared, documents_of) -> None:
    module, tail, _, (small, large) = prepared
    assert small.questions == large.questions and small.gold == large.gold and small.overlays == large.overlays
    assert 0 <= small.base_documents < large.base_documents
    assert {question.overlay_id for question in small.questions} == {"head0", "head1"}
    for cell, size in ((small, 4096), (large, 16384)):
        for question, gold in zip(cell.questions, cell.gold, strict=True):
            documents = documents_of(tail, cell, question)
            assert size - 1300 < sum(document.num_tokens for document in documents.values()) <= size
            assert max(document.num_tokens for document in documents.values()) <= 96
            assert len({document.text for document in documents.values()}) == len(documents)
            hops = [documents[doc_id].text for doc_id in gold.gold_doc_ids]
            assert gold.answers[0] in hops[-1]
            holders = [document for document in documents.values() if f" {gold.answers[0]} " in f" {document.text} "]
            assert len(holders) <= 2  # only by chance does the tail hold the same number
            assert len(hops) == (1 if module is scaling else 2)


def test_a_head_is_new_to_its_tail(prepared) -> None:
    _, tail, _, (cell, _) = prepared
    documents = [document for head in cell.overlays.values() for document in head]
    ids = [document.doc_id for document in documents]
    assert len(set(ids)) == len(ids) and not set(ids) & set(tail.doc_ids.tolist())
    texts = {document.text for document in tail.take(set(range(len(tail.doc_ids)))).values()}
    assert not texts & {document.text for document in documents}


def names_in(texts) -> set[tuple[str, str]]:
    adjectives, nouns = (set(words) for words in wording.plain_words())
    found = {tuple(name.lower().split()) for text in texts for name in NAME.findall(text)}
    return {pair for pair in found if pair[0] in adjectives and pair[1] in nouns}


def test_entities_of_heads_tails_and_training_are_disjoint(prepared) -> None:
    _, tail, _, (cell, _) = prepared
    heads = names_in(question.text for question in cell.questions)
    tails = names_in(document.text for document in tail.take(set(range(len(tail.doc_ids)))).values())
    assert heads and tails
    assert {wording.pair_role(*pair) for pair in heads} == {wording.ASKED}
    counts = [wording.pair_role(*pair) for pair in tails]
    assert counts.count(wording.TAIL) > 0.9 * len(counts)  # the rest are pairs that the prose holds by chance


def test_siblings_share_the_entity_and_halves(make) -> None:
    tail = make.tail(scaling, "scaling", 16384)
    (head, _) = heads.make_heads(make.task("s", tail, 20, **PARAMS), heads.HeadParams(**PARAMS), scaling.fact_head)
    names = set()
    for ask in head.asks:
        gold = head.documents[ask.documents[0]].text
        entity = next(name for name in NAME.findall(ask.text.replace("What ", "").replace("How ", "")) if name in gold)
        names.add(entity)
        assert f" {ask.answers[0]} " in f" {gold} "
        assert sum(entity in document.text for document in head.documents) == len(wording.ATTRIBUTES)
    assert len({name.split()[1] for name in names}) < len(names)


def test_questions_share_few_words_with_their_facts() -> None:
    small = {"the", "of", "is", "are", "a", "at", "on", "has", "have", "in", "to", "entity", "value"}
    for documents, questions in wording.ATTRIBUTES.values():
        for document in documents:
            for question in questions:
                words = [set(re.findall("[a-z]+", text.lower())) - small for text in (document, question)]
                assert not words[0] & words[1]


def test_streams_are_stable_and_nested(make) -> None:
    for name, module in KINDS.items():
        long = list(islice(module.make_corpus(make.corpus(name, 8000)), 60))
        assert [d.text for d in module.make_corpus(make.corpus(name, 8000))][:60] == [d.text for d in long]
        assert [d.text for d in module.make_corpus(make.corpus(name, 4000))][:30] == [d.text for d in long[:30]]


def test_a_context_below_the_smallest_head(make) -> None:
    tail = make.tail(scaling, "scaling", 16384)
    with pytest.raises(UserError, match=r"context 2K .* below the smallest head"):
        list(scaling.prepare(make.task("s", tail, 20, {"2K": 2048}, **PARAMS)))


def test_too_many_questions_for_a_head(make) -> None:
    tail = make.tail(multihop, "multihop", 16384)
    with pytest.raises(UserError, match="raise 'replicates' or 'head_tokens'"):
        list(multihop.prepare(make.task("m", tail, 100, **PARAMS)))
    with pytest.raises(UserError, match="unknown key 'replicatez'"):
        list(multihop.prepare(make.task("m", tail, 4, replicatez=3)))


def test_a_pool_of_names_that_runs_out(make) -> None:
    with pytest.raises(UserError, match="raise 'adjectives' or 'nouns'"):
        list(scaling.make_corpus(make.corpus("scaling", 200_000, adjectives=10, nouns=20)))


@pytest.mark.parametrize(
    ("make_head", "digest"),
    [
        (scaling.fact_head, "91cdd31b1293"),
        (multihop.chain_head, "7c3d3364f4ba"),
        (partial(agent_history.history_head, 12), "bb60bf0cca41"),
        (partial(persona.persona_head, 3), "7f4bf9e17efa"),
        (partial(aggregate.count_head, 8), "b84efa751f51"),
        (partial(aggregate.compare_head, 3), "1c325756ffd0"),
        (partial(summary.summary_head, 2), "16a0aad017f2"),
        (partial(editing.dated_head, 3), "5cd608099370"),
    ],
)
def test_sentences_and_questions_are_those_of_published_results(make_head, digest) -> None:
    """Another digest means other questions: results before and after it compare no more."""
    sentences, asks = heads.joined(make_head(120, random.Random(0)))
    made = json.dumps([sentences, [vars(ask) for ask in asks]])
    assert hashlib.sha256(made.encode()).hexdigest()[:12] == digest
