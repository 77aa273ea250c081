"""HippoRAG 2: the graph and its PageRank worked by hand, extraction, and overlays as on a rebuilt corpus."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

import baselines.hipporag as module
from baselines.base import Resources, read_params
from baselines.extraction import Fact, ModelExtractor, RuleExtractor, clean, read_reply, split_title
from baselines.hipporag import HippoRAG, HippoRAGSystem, Params, chosen, seeds
from baselines.passage_graph import Columns, PassageGraph, Synonyms, SynonymSpec, mined, ranking, spread
from configs.errors import UserError
from configs.records import CorpusView, Document, Generation, Overlay, Question
from tests.baselines.conftest import FakeEmbedder
from tests.baselines.test_retrieval import open_dense, rebuilt

NONE = (np.zeros((0, 2), np.int64), np.zeros(0))
NAMES = ["Ada Rook", "Ben Dale", "Cy Moss", "Dan Pike", "Eve Holt", "Flo Wynn"]


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_embedder", FakeEmbedder)


class Scripted:
    """A model that replies what it is told, and remembers what it was asked."""

    def __init__(self, *replies: str) -> None:
        self.replies, self.asked = list(replies), []

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[Generation]:
        self.asked += prompts
        return [Generation(self.replies.pop(0), 10, 5, 0.1, 0.2) for _ in prompts]


def test_pagerank_of_a_graph_worked_by_hand() -> None:
    # passage 0 relates entities 0 and 1, passage 1 entities 1 and 2: the path p0 = (0, 1), p1 = (1, 2) with edges of weight 1
    # 0-1, 1-2, 0-p0, 1-p0, 1-p1, 2-p1. Restart at entity 0 alone, damping 1/2: x = restart / 2 + walk / 2.
    graph = PassageGraph(Columns.of([mined([0], [(0, 1)]), mined([1], [(1, 2)])]), 2, NONE)
    edges = {tuple(edge): weight for edge, weight in zip(graph.edges[0].tolist(), graph.edges[1].tolist(), strict=True)}
    assert edges == {(0, 1): 1, (1, 2): 1, (0, 3): 1, (1, 3): 1, (1, 4): 1, (2, 4): 1}
    degree = {0: 2, 1: 4, 2: 2, 3: 2, 4: 2}
    walk = np.zeros((5, 5))
    for one, other in edges:
        walk[one, other], walk[other, one] = 1 / degree[other], 1 / degree[one]
    expected = np.linalg.solve(np.eye(5) - walk / 2, np.array([0.5, 0, 0, 0, 0]))
    found = graph.pagerank(np.array([3.0, 0, 0]), np.zeros(2), 0.5)
    np.testing.assert_allclose(found, expected[3:], rtol=1e-9)
    # by hand: y = x2 = xp1 and y = (x1 / 4 + y / 2) / 2 give y = x1 / 6; x0 + xp0 + x1 + 2 y = 1, xp0 = x0 / 4 + x1 / 8 and
    # x1 = x0 / 4 + xp0 / 4 + y / 2 give x1 = 1 / 5, hence y = 1 / 30, x0 = 17 / 30, xp0 = 1 / 6
    np.testing.assert_allclose(found, [1 / 6, 1 / 30], rtol=1e-9)


def test_weights_count_triples_and_a_synonym_takes_their_place() -> None:
    twice = mined([0, 1], [(0, 1), (1, 0), (0, 0)])  # no entity is its own neighbour
    once = mined([0], [(0, 1)])
    graph = PassageGraph(Columns.of([twice, once]), 2, NONE)
    assert dict(zip(map(tuple, graph.edges[0].tolist()), graph.edges[1].tolist(), strict=True))[0, 1] == 3
    alike = PassageGraph(Columns.of([twice, once]), 2, (np.array([[0, 1]]), np.array([0.9])))
    edges = list(zip(map(tuple, alike.edges[0].tolist()), alike.edges[1].tolist(), strict=True))
    assert [weight for edge, weight in edges if edge == (0, 1)] == [0.9]
    assert alike.num_passages_of.tolist() == [2, 2]


def test_synonyms_need_three_characters_and_keep_the_nearest() -> None:
    vectors = np.array([[1, 0], [0.99, 0.141], [0.9, 0.436], [0, 1]], np.float32)
    spec = SynonymSpec(threshold=0.8, neighbours=2047, cap=1, min_characters=2)
    every = np.arange(4)
    pairs, cosines = Synonyms(every, vectors, np.array([True] * 4), spec, 0).among(every, vectors, np.array([True] * 4))
    assert pairs.tolist() == [[0, 1], [1, 2]]  # 2's one link goes to 1; 3 has none
    np.testing.assert_allclose(cosines, [0.99, 0.9525], atol=1e-3)
    short = np.array([True, False, False, True])
    pairs, _ = Synonyms(every, vectors, short, spec, 0).among(every, vectors, short)
    assert pairs.tolist() == [[0, 1]]


@pytest.mark.parametrize("removed", [[0], [2, 5], []])
def test_synonyms_of_an_overlay_are_those_found_from_scratch(removed: list[int]) -> None:
    rng = np.random.default_rng(len(removed))
    vectors = rng.standard_normal((40, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    spec, eligible = SynonymSpec(0.7, 2047, 3, 2), rng.random(40) < 0.8
    base = np.arange(30)
    now = np.setdiff1d(np.arange(40), removed)
    amended = Synonyms(base, vectors, eligible, spec, len(removed)).among(now, vectors, eligible)
    fresh = Synonyms(now, vectors, eligible, spec, 0).among(now, vectors, eligible)
    assert amended[0].tolist() == fresh[0].tolist()
    np.testing.assert_allclose(amended[1], fresh[1], atol=1e-6)
    assert len(fresh[0]) > 5


def test_seeds_average_over_facts_and_divide_by_passages() -> None:
    facts = [(("a", "r", "b"), 1.0), (("a", "s", "c"), 0.5)]
    held = {"a": 2, "b": 1, "c": 1}.__getitem__
    assert seeds(facts, held, 5) == {"b": 1.0, "c": 0.5, "a": 0.375}
    assert seeds(facts, held, 2) == {"b": 1.0, "c": 0.5}


def test_scores_are_spread_and_ranked() -> None:
    assert spread(np.array([2.0, 4.0, 3.0])).tolist() == [0, 1, 0.5]
    assert spread(np.array([2.0, 2.0])).tolist() == [1, 1]
    assert ranking(np.array([0.1, 0.3, 0.1 + 1e-15])).tolist() == [1, 0, 2]


def test_rules_find_names_numbers_and_keys() -> None:
    passages = [
        "Some 26598 residents live in Garrulous Familiar. Return the object as it is.",
        "One of the special magic numbers for old-fashioned-death is: 6474267.\nOne of the special magic numbers for b-c is: 12.",
        "Lucy Saunders\nShe wrote a book in New York. Beer is good.",
        "",
    ]
    found = [[fact.triple for fact in facts] for facts in RuleExtractor().facts(passages)]
    assert found[0] == [("26598", "some residents live in", "garrulous familiar")]
    assert found[1][0] == ("old fashioned death", "one of the special magic numbers for is", "6474267")
    assert found[1][1][0] == "b c"
    assert found[2] == [("lucy saunders", "she wrote a book in", "new york"), ("lucy saunders", "is", "good")]
    assert found[3] == []
    assert RuleExtractor().facts(passages[2:3])[0][0].statement == "Lucy Saunders: She wrote a book in New York."
    assert split_title("A full sentence.\nAnother.") == ("", "A full sentence.\nAnother.")


def test_a_model_extracts_in_two_calls_and_once_a_passage(tmp_path: Path) -> None:
    model = Scripted(
        'Sure: {"entities": ["Ada Rook", "Rome"]}',
        json.dumps({"triples": [["Ada Rook", "lives in", "Rome!"], ["broken"], ["", "x", "y"], 7]}),
    )
    cache = tmp_path / "extraction.jsonl"
    extractor = ModelExtractor(model, cache)
    expected = [[Fact(("ada rook", "lives in", "rome"), "ada rook, lives in, rome")]]
    assert extractor.facts(["Ada\nAda Rook lives in Rome."]) == expected
    assert '["Ada Rook", "Rome"]' in model.asked[1]
    assert (extractor.calls, extractor.failures) == (2, 0)
    cache.write_text(cache.read_text() + '{"passage": "cut sh')
    assert ModelExtractor(Scripted(), cache).facts(["Ada\nAda Rook lives in Rome."]) == expected


def test_a_reply_without_json_is_a_failure_and_no_triple() -> None:
    extractor = ModelExtractor(Scripted("I cannot.", "{not json}"), None)
    assert extractor.facts(["text"]) == [[]]
    assert extractor.failures == 2
    assert read_reply('{"x": 1} {"facts": [["a", "b", "c"]]}', "facts") == [["a", "b", "c"]]
    assert clean([["A-b", "is", 12]]) == [("a b", "is", "12")]


def test_a_model_filters_facts_and_none_left_means_dense(tmp_path: Path) -> None:
    documents = [Document(number, f"{NAMES[number]} met {NAMES[number + 1]} by the sea.", 9) for number in range(4)]
    open_dense(documents, tmp_path)
    model = Scripted('{"facts": [["ada rook", "met by the sea", "ben dale"]]}', "none of them")
    retriever = HippoRAG(Params(extractor="rules", phrases="words"), Resources(None, tmp_path, None, 1, 0), model)
    view = CorpusView(documents, {})
    question = Question("q", "Who did Ben Dale meet after Ada Rook ?", "", 5)
    retriever.ingest(view)
    first, second = ([d.doc_id for d in retriever.rank([question], view, 9).documents[0]] for _ in range(2))
    assert first[:2] == [0, 1]  # 1 holds ben dale, the other seed; 2 and 3 hold no seed
    assert '["ada rook", "met by the sea", "ben dale"]' in model.asked[0]
    queries = FakeEmbedder(None, 1).queries([question.text])[0]
    scores = FakeEmbedder(None, 1).documents(documents) @ queries
    assert second == np.argsort(-scores, kind="stable").tolist()
    kept = chosen([("ada rook", "met by sea", "ben dale"), ("nobody", "ever", "heard of")], [("ada rook", "met by the sea", "ben dale")])
    assert kept == [("ada rook", "met by the sea", "ben dale")]


def named_view(rng: random.Random) -> tuple[CorpusView, list[Question]]:
    """Sentences about few names, with overlays that add, replace and do both."""

    def text() -> str:
        one, other = rng.sample(NAMES, 2)
        return f"so {one} {rng.choice(('met', 'left', 'saw'))} {other} . then {rng.choice(NAMES)} paid {rng.randint(2, 9)} coins"

    base = [Document(number, text(), 20) for number in rng.sample(range(100, 999), 12)]
    adding = tuple(Document(number, text(), 20) for number in (1, 2, 3))
    replacing = tuple(Document(document.doc_id, text(), 20) for document in base[2:5])
    overlays = {"adding": adding, "replacing": replacing, "both": (adding[1], replacing[0])}
    view = CorpusView(base, {name: Overlay(name, added) for name, added in overlays.items()})
    questions = [
        Question(f"q{place}", f"whom did {rng.choice(NAMES)} see ?", "", 5, name)
        for place, name in enumerate([None, *overlays, *overlays])
    ]
    return view, questions


@pytest.mark.parametrize("seed", range(3))
def test_overlays_rank_as_on_the_rebuilt_corpus(seed: int, tmp_path: Path) -> None:
    view, questions = named_view(random.Random(seed))
    params = Params(read_k=2, routed_k=20, extractor="rules", fact_filter="names", phrases="both", synonym_threshold=0.6, synonym_cap=2)
    open_dense(list(view.base), tmp_path)
    system = HippoRAGSystem(params, Resources(None, tmp_path, None, 1, 0))
    for place, (question, answer) in enumerate(zip(questions, system.answer(questions, view), strict=True)):
        other_view, plain = rebuilt(view, question)
        directory = tmp_path / f"rebuilt{place}"
        open_dense(list(other_view.base), directory)
        (expected,) = HippoRAGSystem(params, Resources(None, directory, None, 1, 0)).answer([plain], other_view)
        assert answer.routed_doc_ids == expected.routed_doc_ids
        assert answer.text == expected.text


def test_a_chain_is_followed_where_dense_ranking_stops(tmp_path: Path) -> None:
    fillers = [Document(100 + n, f"The number for the partner of {NAMES[n % 3 + 3]} {n} is kept .", 9) for n in range(20)]
    link = Document(1, "The partner of Ada Rook is Ben Dale.", 9)
    number = Document(2, "Ben Dale has 88502 coins.", 9)
    documents = [*fillers, link, number]
    dense = open_dense(documents, tmp_path)
    view = CorpusView(documents, {})
    question = Question("q", "What is the number for the partner of Ada Rook ?", "", 5)
    system = HippoRAGSystem(Params(extractor="rules", fact_filter="names", phrases="words"), Resources(None, tmp_path, None, 1, 0))
    assert set(system.select([question], view)[0].routed_doc_ids["hipporag"][:2]) == {1, 2}
    assert 2 not in dense.select([question], view)[0].routed_doc_ids["dense"][:5]


@pytest.mark.parametrize("params", [{"extractor": "magic"}, {"fact_filter": "all"}, {"phrases": "x"}, {"damping": 1.0}, {"facts_k": 0}])
def test_bad_parameters_name_their_place(params: dict) -> None:
    with pytest.raises(UserError, match=r"^systems\.yaml: here"):
        read_params(Params, params, "systems.yaml: here")
