"""RULER's wording and its eight tasks, over shared tails."""

from __future__ import annotations

import random
import re
import uuid

import pytest
from wonderwords import random_word

from msa_base.errors import UserError
from msa_base.load import load
from tasks import haystack, ruler
from tasks.parts import wording
from tasks.parts.tail import Tail

TASKS = {
    "s1": {"haystack": "noise"},
    "s2": {"haystack": "prose"},
    "s3": {"haystack": "prose", "value": "uuid"},
    "mk1": {"haystack": "prose", "num_keys": 4},
    "mk2": {"haystack": "needles"},
    "mk3": {"haystack": "needles", "key": "uuid", "value": "uuid"},
    "mv": {"haystack": "prose", "num_values": 4},
    "mq": {"haystack": "prose", "num_keys": 4, "num_queries": 4},
}
# NVIDIA/RULER, scripts/data/synthetic/constants.py at c3f5e3b: template and answer prefix of "niah"
TEMPLATE = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. I will quiz you"
    " about the {type_needle_v} afterwards.\n{context}\nWhat are all the special magic {type_needle_v} for {query}"
    " mentioned in the provided text? The special magic {type_needle_v} for {query} mentioned in the provided text are"
)
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+( \S+)?) is: (\S+)\.")


def tail_of(make, params) -> Tail:
    form = {"form": params["haystack"]}
    if params["haystack"] == "needles":
        form.update(key=params.get("key", "word"), value=params.get("value", "number"))
    return make.tail(haystack, "-".join(form.values()), 16384, **form)


@pytest.mark.parametrize("name", TASKS)
def test_needles_are_where_gold_says(name, make, documents_of) -> None:
    params = TASKS[name]
    tail = tail_of(make, params)
    cells = list(ruler.prepare(make.task(name, tail, 12, **params)))
    assert [cell.context for cell in cells] == ["4K", "16K"]
    for cell, size in zip(cells, (4096, 16384), strict=True):
        for question, gold in zip(cell.questions, cell.gold, strict=True):
            documents = documents_of(tail, cell, question)
            assert len(documents) == cell.base_documents  # needles replace, so nothing is added
            total = sum(document.num_tokens for document in documents.values())
            assert size - 450 < total + question.max_new_tokens <= size
            assert all(document.num_tokens <= 96 for document in documents.values())
            held = " ".join(documents[doc_id].text for doc_id in gold.gold_doc_ids)
            keys = [match[2] for match in NEEDLE.finditer(held) if match[4] in gold.answers]
            assert len(gold.answers) == params.get("num_values", 1) * params.get("num_queries", 1) == len(keys)
            assert all(key in question.text and key in question.answer_prefix for key in keys)
            # every occurrence of an asked key in the corpus is one of its needles
            text = "\n".join(document.text for document in documents.values())
            assert sum(text.count(f" {key} ") for key in set(keys)) == len(gold.answers)


def rulers_prompt(kind: str, queries: list[str], one: bool) -> str:
    """What niah.py makes of its template, the context left out."""
    template, kinds = TEMPLATE, f"{kind}s"
    if one:
        template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
        kinds = kind
    query = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
    return template.format(type_needle_v=kinds, context="", query=query).replace("\n\n", "\n")


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_rulers_with_and_without_the_opening(name) -> None:
    params = ruler.Params(**TASKS[name])
    for item in ruler.draw_questions(name, params, 3):
        key_of = {match[4]: match[2] for match in map(NEEDLE.fullmatch, item.sentences)}
        queries = list(dict.fromkeys(key_of[answer] for answer in item.answers))
        expected = rulers_prompt(params.value, queries, params.num_values * params.num_queries == 1)
        assert len(queries) == params.num_queries
        assert item.question.text + item.question.answer_prefix == expected
    bare = ruler.draw_questions(name, ruler.Params(**TASKS[name], opening=False), 3)
    for one, other in zip(bare, ruler.draw_questions(name, params, 3), strict=True):
        assert other.question.text.partition("afterwards.\n")[2] == one.question.text
        assert (one.answers, one.sentences, one.depths) == (other.answers, other.sentences, other.depths)


def test_the_paper_s_figure_has_the_opening_and_trained_models_do_not() -> None:
    openings = {
        profile: {
            ruler.Params(**experiment.tasks[name].params).opening
            for name in experiment.profile.tasks
            if experiment.tasks[name].kind == "ruler"
        }
        for profile in ("paper_needles", "tiny", "small")
        for experiment in [load(profile)]
    }
    assert openings == {"paper_needles": {True}, "tiny": {False}, "small": {False}}


def test_the_tasks_are_rulers_eight() -> None:
    """``TASKS`` is NVIDIA/RULER's scripts/synthetic.yaml at c3f5e3b."""
    assert (ruler.Params("noise").seed, ruler.Params("noise").max_new_tokens) == (42, 128)
    experiment = load("paper_needles")
    assert len(experiment.profile.tasks) == len(TASKS)
    for name, params in TASKS.items():
        entry = experiment.tasks[f"niah_opened_{name}"]
        assert ruler.Params(**entry.params) == ruler.Params(**params) and entry.metric == "ruler_match"


def test_words_and_values_are_drawn_from_rulers_lists_and_ranges() -> None:
    adjectives, nouns = wording.ruler_words()
    assert set(nouns) == set(random_word._get_words_from_text_file("nounlist.txt"))
    assert set(adjectives) == set(random_word._get_words_from_text_file("adjectivelist.txt"))
    drawn = random.Random(1).getrandbits(128)
    assert wording.random_uuid(random.Random(1)) == str(uuid.UUID(int=drawn, version=4))
    assert wording.random_number(random.Random(1)) == str(random.Random(1).randint(10**6, 10**7 - 1))


def test_an_opened_question_leaves_no_more_room_than_one_without(make) -> None:
    tail, params = tail_of(make, TASKS["s2"]), TASKS["s2"]
    opened, bare = (
        next(ruler.prepare(make.task("s2", tail, 4, opening=opening, **params))) for opening in (True, False)
    )
    assert bare.base_documents <= opened.base_documents <= bare.base_documents + 1


def test_wording() -> None:
    assert wording.needle("red-fox", "1234567", "number") == "One of the special magic numbers for red-fox is: 1234567."
    assert wording.ruler_question(["red-fox"], "uuid", 1) == (
        "What is the special magic uuid for red-fox mentioned in the provided text?",
        " The special magic uuid for red-fox mentioned in the provided text is",
    )
    question, prefix = wording.ruler_question(["a-b", "c-d", "e-f"], "number", 1)
    assert question == "What are all the special magic numbers for a-b, c-d, and e-f mentioned in the provided text?"
    assert prefix == " The special magic numbers for a-b, c-d, and e-f mentioned in the provided text are"
    assert len(ruler.DEPTHS) == 40 and (ruler.DEPTHS[0], ruler.DEPTHS[1], ruler.DEPTHS[-1]) == (0, 3, 100)


def test_questions_are_the_same_in_every_context(make) -> None:
    params = TASKS["mv"]
    small, large = ruler.prepare(make.task("mv", tail_of(make, params), 6, **params))
    assert small.questions == large.questions
    assert [gold.answers for gold in small.gold] == [gold.answers for gold in large.gold]
    assert small.base_documents < large.base_documents


def test_depths_spread_over_the_context(make) -> None:
    tail = tail_of(make, TASKS["s2"])
    request = make.task("s2", tail, 40, {"16K": 16384}, **TASKS["s2"])
    drawn = ruler.draw_questions("s2", ruler.Params("prose"), 40)
    base = tail.prefix(16000)
    for item in drawn:
        ((document, _),) = ruler.positions(request, item, [20], base, 80)
        assert abs(document / base - item.depths[0]) < 0.05
    assert len({item.depths[0] for item in drawn}) > 20


def test_values_of_one_key_have_distinct_depths() -> None:
    for item in ruler.draw_questions("mv", ruler.Params("prose", num_values=4), 50):
        assert len(set(item.depths)) == 4 and len(set(item.answers)) == 4


def test_needles_that_crowd_a_document_move_on(make) -> None:
    tail = tail_of(make, TASKS["s2"])
    request = make.task("s2", tail, 1, **TASKS["s2"])
    item = ruler.draw_questions("s2", ruler.Params("prose", num_keys=3), 1)[0]
    crowded = ruler.Needles(item.question, item.answers, item.sentences, item.asked, [0.0, 0.0, 0.0])
    assert [document for document, _ in ruler.positions(request, crowded, [40, 40, 40], 5, 83)] == [0, 0, 1]


def test_keys_of_questions_tails_and_training_are_disjoint(make) -> None:
    roles = {role: set() for role in (wording.TRAIN, wording.ASKED, wording.TAIL)}
    adjectives, nouns = wording.ruler_words()
    for adjective in adjectives[::30]:
        for noun in nouns[::150]:
            roles[wording.pair_role(adjective, noun)].add((adjective, noun))
    sizes = [len(found) for found in roles.values()]
    assert sizes[0] > sizes[1] > 100 and sizes[2] > 100
    tail = tail_of(make, TASKS["mk2"])
    documents = tail.take(set(range(len(tail.doc_ids))))
    keys = [match[2] for document in documents.values() for match in NEEDLE.finditer(document.text)]
    assert len(set(keys)) == len(keys) > 500
    asked = {
        key
        for item in ruler.draw_questions("mk2", ruler.Params("needles"), 200)
        for key in NEEDLE.findall(item.sentences[0])[0][1:2]
    }
    assert not asked & set(keys)


def test_only_noise_repeats_documents(make) -> None:
    for name, distinct in (("s1", False), ("s2", True), ("mk2", True), ("mk3", True)):
        tail = tail_of(make, TASKS[name])
        texts = [document.text for document in tail.take(set(range(len(tail.doc_ids)))).values()]
        assert (len(set(texts)) == len(texts)) is distinct


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"haystack": "essay"}, "key 'haystack' must be .*prose.*needles.*, found 'essay'"),
        ({"haystack": "prose", "num_queries": 2}, "key 'num_queries'"),
        ({"haystack": "prose", "num_keys": 41}, "num_keys times num_values"),
        ({"haystack": "prose", "colour": "red"}, "unknown key 'colour'"),
        ({"haystack": "prose", "opening": 1}, "key 'opening'"),
    ],
)
def test_bad_parameters(params, message, make) -> None:
    tail = tail_of(make, TASKS["s2"])
    with pytest.raises(UserError, match=message):
        list(ruler.prepare(make.task("s2", tail, 2, **params)))


def test_a_context_too_small(make) -> None:
    with pytest.raises(UserError, match=r"context tiny .* below the smallest head"):
        list(ruler.prepare(make.task("s2", tail_of(make, TASKS["s2"]), 2, {"tiny": 200}, **TASKS["s2"])))


def test_a_haystack_form_that_is_unknown(make) -> None:
    with pytest.raises(UserError, match=r"key 'form' must be .*prose.*noise.*needles.*, found 'essay'"):
        list(haystack.make_corpus(make.corpus("x", 1000, form="essay")))
