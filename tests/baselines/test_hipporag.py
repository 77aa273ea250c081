"""HippoRAG 2: the graph and its PageRank worked by hand, extraction, and the filter of facts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from baselines import hipporag
from baselines.base import Resources
from baselines.hipporag import HippoRAG, Params, facts_named, seeds
from baselines.parts.extraction import (
    CLOSED,
    EXTRACTION_TOKENS,
    NO_LIST,
    ModelExtractor,
    RuleExtractor,
    StatedTriple,
    clean,
    find_list,
    normalised,
    split_title,
)
from baselines.parts.passage_graph import Columns, PassageGraph, Synonyms, min_max, mined
from baselines.parts.retrieval import best_places
from msa_base.errors import UserError
from msa_base.records import CorpusView, Document, Generation, Question
from msa_base.replies import Losses
from msa_base.specs import SystemSpec
from msa_base.tables import write_json
from msa_base.validate import build
from tests.baselines.conftest import FakeEmbedder
from tests.baselines.test_retrieval import open_dense

NONE = (np.zeros((0, 2), np.int64), np.zeros(0))
NAMES = ["Ada Rook", "Ben Dale", "Cy Moss", "Dan Pike", "Eve Holt", "Flo Wynn"]


class Scripted:
    """A model that replies what it is told, and remembers what it was asked."""

    def __init__(self, *replies: str, truncated: bool = False) -> None:
        self.replies, self.asked, self.truncated = list(replies), [], truncated

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[Generation]:
        self.asked += prompts
        return [Generation(self.replies.pop(0), 10, 5, 0.1, 0.2, self.truncated) for _ in prompts]


def edges_of(graph: PassageGraph) -> dict[tuple[int, int], float]:
    ends, weights = graph.edges
    found = dict(zip(map(tuple, ends.tolist()), weights.tolist(), strict=True))
    assert len(found) == len(ends)  # no two between the same nodes
    return found


def test_pagerank_of_a_graph_worked_by_hand() -> None:
    # passage 0 relates entities 0 and 1, passage 1 entities 1 and 2: edges 0-1 and 1-2 of weight 2 (a triple counts in
    # both directions), 0-p0, 1-p0, 1-p1, 2-p1 of weight 1. Restart at entity 0 alone, damping 1/2: x = restart / 2 +
    # walk / 2.
    graph = PassageGraph(Columns.of([mined([0], [(0, 1)]), mined([1], [(1, 2)])]), 2, NONE)
    edges = edges_of(graph)
    assert edges == {(0, 1): 2, (1, 2): 2, (0, 3): 1, (1, 3): 1, (1, 4): 1, (2, 4): 1}
    degree = {0: 3, 1: 6, 2: 3, 3: 2, 4: 2}
    walk = np.zeros((5, 5))
    for (one, other), weight in edges.items():
        walk[one, other], walk[other, one] = weight / degree[other], weight / degree[one]
    expected = np.linalg.solve(np.eye(5) - walk / 2, np.array([0.5, 0, 0, 0, 0]))
    found = graph.pagerank(np.array([3.0, 0, 0]), np.zeros(2), 0.5)
    np.testing.assert_allclose(found, expected[3:], rtol=1e-9)
    # by hand: x2 = x1 / 6 + xp1 / 4 and xp1 = x1 / 12 + x2 / 6 give x2 = 9 x1 / 46 and xp1 = 8 x1 / 69; with
    # xp0 = x0 / 6 + x1 / 12, x1 = x0 / 3 + x2 / 3 + xp0 / 4 + xp1 / 4 gives x1 = 414 x0 / 977, and their sum of 1
    # x1 = 27 / 112
    np.testing.assert_allclose(found, [37 / 322, 9 / 322], rtol=1e-9)


def test_weights_count_triples_in_both_directions_and_a_synonym_takes_a_direction_s_place() -> None:
    twice = mined([0, 1], [(0, 1), (1, 0), (0, 0)])  # no entity is its own neighbour
    once = mined([0], [(0, 1)])
    columns = Columns.of([twice, once])
    assert edges_of(PassageGraph(columns, 2, NONE))[0, 1] == 6
    both = PassageGraph(columns, 2, (np.array([[0, 1], [1, 0]]), np.array([0.9, 0.9])))
    assert edges_of(both)[0, 1] == 1.8 and both.num_passages_of.tolist() == [2, 2]
    # the other may be too short for synonyms, or have nearer ones
    assert edges_of(PassageGraph(columns, 2, (np.array([[1, 0]]), np.array([0.9]))))[0, 1] == 3.9


def test_edges_are_those_of_the_release_s_bookkeeping() -> None:
    """HippoRAG.py (add_fact_edges, add_synonymy_edges, add_new_edges): one weight a direction, added up by igraph."""
    rng = np.random.default_rng(0)
    triples = [[(int(a), int(b)) for a, b in rng.integers(0, 7, (6, 2))] for _ in range(5)]
    links = [(int(a), int(b)) for a, b in rng.integers(0, 7, (9, 2)) if a != b]
    cosines = {link: 0.8 + 0.01 * number for number, link in enumerate(links)}
    directed: dict[tuple, float] = {}
    for one, other in (pair for passage in triples for pair in passage):
        for link in ((one, other), (other, one)):
            directed[link] = directed.get(link, 0.0) + 1
    directed |= cosines
    expected: dict[tuple, float] = {}
    for (one, other), weight in directed.items():
        if one != other:
            pair = min(one, other), max(one, other)
            expected[pair] = expected.get(pair, 0.0) + weight
    for passage, pairs in enumerate(triples):
        expected |= {(entity, 7 + passage): 1.0 for pair in pairs for entity in pair}
    columns = Columns.of([mined([number], pairs) for number, pairs in enumerate(triples)])
    found = edges_of(PassageGraph(columns, 5, (np.array(list(cosines)), np.array(list(cosines.values())))))
    assert found == pytest.approx(expected) and len(found) > 20


def test_the_defaults_are_the_release_s() -> None:
    """config_utils.py of OSU-NLP-Group/HippoRAG at c617143; 101: HippoRAG.py goes on until ``num_nns > 100``."""
    found = Params()
    assert (found.facts_k, found.entities_k, found.routed_k, found.read_k) == (5, 5, 200, 5)
    assert (found.passage_weight, found.damping) == (0.05, 0.5)
    assert (found.synonym_threshold, found.synonym_neighbours, found.synonym_cap) == (0.8, 2047, 101)
    assert found.synonym_min_characters == 2  # more than these
    assert (EXTRACTION_TOKENS, hipporag.FILTER_TOKENS, hipporag.CLOSE) == (2048, 512, 0.0)


def test_synonyms_need_three_characters_and_keep_the_nearest() -> None:
    vectors = np.array([[1, 0], [0.99, 0.141], [0.9, 0.436], [0, 1]], np.float32)
    spec = 0.8, 1  # threshold, most
    every = np.arange(4)
    links, cosines = Synonyms(every, vectors, np.array([True] * 4), *spec, 0).among(
        every, vectors, np.array([True] * 4)
    )
    assert links.tolist() == [[0, 1], [1, 0], [2, 1]]  # 1's one link goes to 0; 3 has none
    np.testing.assert_allclose(cosines, [0.99, 0.99, 0.9525], atol=1e-3)
    short = np.array([True, False, False, True])
    links, _ = Synonyms(every, vectors, short, *spec, 0).among(every, vectors, short)
    assert links.tolist() == [[0, 1]]


@pytest.mark.parametrize("removed", [[0], [2, 5], []])
def test_synonyms_of_an_overlay_are_those_found_from_scratch(removed: list[int]) -> None:
    rng = np.random.default_rng(len(removed))
    vectors = rng.standard_normal((40, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    spec, eligible = (0.7, 3), rng.random(40) < 0.8
    base = np.arange(30)
    now = np.setdiff1d(np.arange(40), removed)
    amended = Synonyms(base, vectors, eligible, *spec, len(removed)).among(now, vectors, eligible)
    fresh = Synonyms(now, vectors, eligible, *spec, 0).among(now, vectors, eligible)
    assert amended[0].tolist() == fresh[0].tolist()
    np.testing.assert_allclose(amended[1], fresh[1], atol=1e-6)
    assert len(fresh[0]) > 5


def test_seeds_average_over_facts_and_divide_by_passages() -> None:
    facts = [(("a", "r", "b"), 1.0), (("a", "s", "c"), 0.5)]
    held = {"a": 2, "b": 1, "c": 1}.__getitem__
    assert seeds(facts, held, 5) == {"b": 1.0, "c": 0.5, "a": 0.375}
    assert seeds(facts, held, 2) == {"b": 1.0, "c": 0.5}


def test_scores_are_normalised_and_ranked() -> None:
    assert min_max(np.array([2.0, 4.0, 3.0])).tolist() == [0, 1, 0.5]
    assert min_max(np.array([2.0, 2.0])).tolist() == [1, 1]
    places, scores = np.array([7, 3, 9, 4, 5]), np.array([0.1, 0.3, 0.1, 0.1, -1.0])
    for depth in range(6):  # of equals the earlier place, however many are asked for
        assert best_places(places, scores, depth).tolist() == [3, 4, 7, 9, 5][:depth]


def test_rules_find_names_numbers_and_keys() -> None:
    passages = [
        "Some 26598 residents live in Garrulous Familiar. Return the object as it is.",
        (
            "One of the special magic numbers for old-fashioned-death is: 6474267.\nOne of the special magic numbers "
            "for "
            "b-c is: 12."
        ),
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
        json.dumps({"triples": [["Ada Rook", "lives in", "Rome!"]] * 2 + [["broken"], ["", "x", "y"], 7]}),
    )
    cache = tmp_path / "extraction.jsonl"
    extractor = ModelExtractor(model, cache)
    expected = [[StatedTriple(("ada rook", "lives in", "rome"), "('ada rook', 'lives in', 'rome')")]]
    assert extractor.facts(["Ada\nAda Rook lives in Rome."]) == expected
    assert '["Ada Rook", "Rome"]' in model.asked[1]
    assert len(model.asked) == 2
    cache.write_text(cache.read_text() + '{"passage": "cut sh')
    assert ModelExtractor(Scripted(), cache).facts(["Ada\nAda Rook lives in Rome."]) == expected


def test_a_reply_without_json_states_no_triple() -> None:
    extractor = ModelExtractor(Scripted("I cannot.", "{not json}"), None)
    assert extractor.facts(["text"]) == [[]]
    assert find_list('{"facts": "a"} {"facts": ["b"]}', "facts") is None
    assert find_list('{"x": 1} {"facts": [["a", "b", "c"]]}', "facts") == [["a", "b", "c"]]
    assert clean([["A-b", "is", 12]]) == [("a b", "is", "12")]


CUTS = {  # a reply that was cut, and what the release makes of it: its triples, or None
    '{"triples": [["Ada", "lives in", "Rome"], ["Ben", "li': [("ada", "lives in", "rome")],
    '{"triples": [["Ada", "lives in", "Rome"], ["Ben", "in", "Oslo"],': [
        ("ada", "lives in", "rome"), ("ben", "in", "oslo"),
    ],
    '{"triples": [["Ada", "lives in", "Rome"]': [],  # the last comma is within the triple
    'Here: {"triples": [["A {[", "is \\"[", "B"], ["C", "': [("a", "is", "b")],
    '{"triples": [["Ada", "lives in", "Rome, It': None,  # the last comma is within a text
    '{"triples': None,
    "<think>long": None,
    '<think>[{</think>{"triples": [["Ada", "is", "old"], [': [("ada", "is", "old")],
}  # fmt: skip


@pytest.mark.parametrize("reply", CUTS)
def test_an_extraction_that_was_cut_is_read_as_the_release_reads_it_and_counted(reply: str, tmp_path: Path) -> None:
    whole, stated, losses = '{"entities": ["Ada"]}', CUTS[reply], Losses()
    cache = tmp_path / "extraction.jsonl"
    for model in (Scripted(whole, reply, truncated=True), Scripted()):  # asked, and kept
        extractor = ModelExtractor(model, cache)
        assert [fact.triple for fact in extractor.facts(["text"])[0]] == (stated or [])
        extractor.count_losses(["text"], losses)
        used = losses.pop_usage()
        assert used["repaired"] == ({} if stated is None else {CLOSED: 1})
        assert (NO_LIST in used["lost"]) == (stated is None)
    assert ModelExtractor(Scripted(whole, reply), None).facts(["text"]) == [[]]  # no limit was met: the model's own


def test_entities_that_were_cut_are_those_before_the_last_comma() -> None:
    model = Scripted('{"entities": ["Ada Rook", "Rome", "It', '{"triples": []}', truncated=True)
    extractor, losses = ModelExtractor(model, None), Losses()
    extractor.facts(["text"])
    assert 'Entities: ["Ada Rook", "Rome"]' in model.asked[1]
    extractor.count_losses(["text"], losses)
    assert losses.pop_usage() == {"lost": {}, "repaired": {CLOSED: 1}}


def test_what_a_plug_in_extracted_answers_for_its_parameters_alone(tmp_path: Path) -> None:
    def extracts(object_: str) -> list:
        replies = '{"entities": []}', json.dumps({"triples": [["Ann", "in", object_]]})
        extractor = hipporag._model_extractor(Scripted(*replies), tmp_path)  # a model that says nothing of what it is
        return [fact.triple for fact in extractor.facts(["Ann moved."])[0]]

    write_json({"kind": "endpoint", "params": {"model": "weak"}}, tmp_path / "reference.json")
    assert extracts("Rome") == extracts("Oslo") == [("ann", "in", "rome")]  # the second is kept
    write_json({"kind": "endpoint", "params": {"model": "strong"}}, tmp_path / "reference.json")
    assert extracts("Oslo") == [("ann", "in", "oslo")]


def test_a_list_that_a_model_wrote_under_one_key_twice_is_not_halved_in_silence() -> None:
    assert find_list('{"facts": [["a", "b", "c"]], "facts": []}', "facts") is None


def test_a_triple_in_one_writing_counts_once_a_passage() -> None:
    triple = ("rome", "is in", "italy")
    assert clean([["Rome", "is in", "Italy"], ["Rome", "is in", "Italy"]]) == [triple]
    assert clean([["Rome", "is in", "Italy"], ["Rome!", "is in", "Italy"]]) == [triple, triple]  # as in the release
    stated = "Ada Rook met Ben Dale. "
    assert RuleExtractor().facts([stated * 3]) == RuleExtractor().facts([stated])


def test_letters_of_every_script_are_kept() -> None:
    assert normalised("São Paulo") == "são paulo" and normalised("北京, 中国") == "北京 中国"
    assert normalised("October 14,  1982_x") == "october 14 1982 x"


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


def test_every_fact_that_a_model_writes_stands_for_the_nearest_candidate() -> None:
    candidates = [("ada rook", "met by the sea", "ben dale"), ("cy moss", "left", "rome")]
    assert facts_named([["ada rook", "met by sea", "ben dale"]], candidates) == candidates[:1]
    # in the order of the reply, repeats included; one that is near none stands for the nearest nevertheless
    written = [["Cy Moss", "left", "Rome"], ["ada rook", "met", "ben dale"], ["cy moss", "left", "rome"], ["x", 1], "y"]
    kept = facts_named(written, candidates)
    assert kept[:3] == [candidates[1], candidates[0], candidates[1]] and len(kept) == 4
    assert facts_named([], candidates) == []


def test_a_chain_is_followed_where_dense_ranking_stops(tmp_path: Path) -> None:
    fillers = [
        Document(100 + n, f"The number for the partner of {NAMES[n % 3 + 3]} {n} is kept .", 9) for n in range(20)
    ]
    link = Document(1, "The partner of Ada Rook is Ben Dale.", 9)
    number = Document(2, "Ben Dale has 88502 coins.", 9)
    documents = [*fillers, link, number]
    dense = open_dense(documents, tmp_path)
    view = CorpusView(documents, {})
    question = Question("q", "What is the number for the partner of Ada Rook ?", "", 5)
    params = {"extractor": "rules", "fact_filter": "names", "phrases": "words"}
    system = hipporag.make(SystemSpec("hipporag", "", params=params), Resources(None, tmp_path, None, 1, 0))
    system.ingest(view)
    dense.ingest(view)
    assert set(system.select([question], view)[0].routed_doc_ids["hipporag"][:2]) == {1, 2}
    assert 2 not in dense.select([question], view)[0].routed_doc_ids["dense"][:5]


@pytest.mark.parametrize(
    "params", [{"extractor": "magic"}, {"fact_filter": "all"}, {"phrases": "x"}, {"damping": 1.0}, {"facts_k": 0}]
)
def test_bad_parameters_name_their_place(params: dict) -> None:
    with pytest.raises(UserError, match=r"^systems\.yaml: here"):
        build(Params, params, "systems.yaml: here")
