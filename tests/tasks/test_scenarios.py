"""Scenario tasks: what the memory holds after an edit, which answers count, and what guessing would score."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from msa_base.errors import UserError
from msa_base.records import Answer
from tasks import agent_history, aggregate, editing, multihop, persona, scaling, summary
from tasks.stages import score

SIZES = {"8K": 8192, "16K": 16384}
HEAD = {"replicates": 2, "head_tokens": 5000}


def cells(make, module, name, tail, questions, **params):
    """The cells of a task at two contexts."""
    return list(module.prepare(make.task(name, tail, questions, SIZES, **{**HEAD, **params})))


def seen(documents_of, tail, cell):
    """(question, gold, documents by id) of every question."""
    return [
        (question, gold, documents_of(tail, cell, question))
        for question, gold in zip(cell.questions, cell.gold, strict=True)
    ]


@pytest.fixture
def facts(make):
    return make.tail(scaling, "scaling", 16384)


def test_a_replaced_fact_is_in_the_memory_with_its_new_value_alone(make, facts, documents_of) -> None:
    for cell in cells(make, editing, "replaced", facts, 12, change="replaced"):
        original = {doc.doc_id: doc for doc in facts.take(set(range(cell.base_documents))).values()}
        for _, gold, documents in seen(documents_of, facts, cell):
            (doc_id,), (new,), (old,) = gold.gold_doc_ids, gold.answers, gold.rejected
            assert new != old and new in documents[doc_id].text and old not in documents[doc_id].text
            assert original[doc_id].text.replace(old, new) == documents[doc_id].text
            assert documents.keys() == original.keys()  # edited in place, nothing added
            assert sum(document.num_tokens for document in documents.values()) <= SIZES[cell.context]


def test_a_removed_fact_is_gone_and_half_of_the_questions_have_an_answer(make, facts, documents_of) -> None:
    small, large = cells(make, editing, "removed", facts, 12, change="removed")
    assert small.questions == large.questions and small.overlays == large.overlays
    assert small.floor == 0.5 and small.floor_of == "always abstaining"
    for _, gold, documents in seen(documents_of, facts, small):
        if gold.answers:
            assert gold.answers[0] in documents[gold.gold_doc_ids[0]].text and not gold.rejected
        else:
            assert not gold.gold_doc_ids
            assert not any(re.search(rf"\b{gold.rejected[0]}\b", document.text) for document in documents.values())


def test_dated_reports_stand_in_no_telling_order_and_only_the_latest_counts(make, facts, documents_of) -> None:
    cell = cells(make, editing, "dated", facts, 20, change="dated", versions=3)[0]
    places = Counter()
    for _, gold, documents in seen(documents_of, facts, cell):
        reports = [documents[doc_id].text for doc_id in gold.gold_doc_ids]
        years = [int(re.search(r"Report of \d+ \w+ (\d{4}):", text)[1]) for text in reports]
        latest = years.index(max(years))
        places[latest] += 1
        assert len(set(years)) == 3 and gold.answers[0] in reports[latest]
        assert {value for value in gold.rejected if any(value in text for text in reports)} == set(gold.rejected)
    assert len(places) == 3 and cell.floor == pytest.approx(1 / 3)


def test_edits_need_a_tail_that_carries_facts(make) -> None:
    chains = make.tail(multihop, "multihop", 16384)
    with pytest.raises(UserError, match="name a corpus of kind scaling"):
        cells(make, editing, "replaced", chains, 12, change="replaced")
    with pytest.raises(UserError, match=r"'change' must be .*replaced.*removed.*dated.*, found 'renamed'"):
        cells(make, editing, "replaced", chains, 12, change="renamed")


def test_a_persona_is_asked_in_several_wordings(make, documents_of) -> None:
    tail = make.tail(persona, "dialogues", 16384, document_tokens=160)
    cell = cells(make, persona, "persona", tail, 24, wordings=3)[0]
    groups: dict = {}
    for question, gold, documents in seen(documents_of, tail, cell):
        groups.setdefault(gold.group, []).append((question.text, tuple(gold.answers)))
        assert gold.answers[0] in documents[gold.gold_doc_ids[0]].text
        assert gold.group.split("/")[1] in documents[gold.gold_doc_ids[0]].text
    assert {len(set(asked)) for asked in groups.values()} == {3}
    assert all(len({answers for _, answers in asked}) == 1 for asked in groups.values())
    most = Counter(gold.answers[0] for gold in cell.gold).most_common(1)[0][1]
    assert cell.floor == most / len(cell.gold) and cell.floor_of.startswith("always answering")


def test_a_step_of_an_agent_is_the_only_one_that_answers(make, documents_of) -> None:
    tail = make.tail(agent_history, "logs", 16384, document_tokens=160)
    for question, gold, documents in seen(documents_of, tail, cells(make, agent_history, "agent", tail, 30)[0]):
        job = re.search(r"job ([A-Z]\w+ [A-Z]\w+)", question.text)[1]
        named = re.search(r"(?:step|option) (\d+)", question.text)[0]
        holders = [
            doc_id
            for doc_id, doc in documents.items()
            if f"Job {job}," in doc.text and re.search(rf"\b{named}\b", doc.text)
        ]
        assert holders == gold.gold_doc_ids and gold.answers[0] in documents[holders[0]].text


def test_counting_and_comparing_need_all_their_documents(make, facts, documents_of) -> None:
    chains = make.tail(multihop, "multihop", 16384)
    cell = cells(make, aggregate, "count", chains, 12, ask="count", entities=6)[0]
    for question, gold, documents in seen(documents_of, chains, cell):
        other = re.search(r"[A-Z]\w+ [A-Z]\w+(?= as a| the partner|\?)|(?<=is )[A-Z]\w+ [A-Z]\w+", question.text)[0]
        holders = {doc_id for doc_id, document in documents.items() if other in document.text}
        assert holders == set(gold.gold_doc_ids) and gold.answers == [str(len(holders))]
    cell = cells(make, aggregate, "compare", facts, 12, ask="compare", entities=3)[0]
    assert cell.floor == pytest.approx(1 / 3)
    for _, gold, documents in seen(documents_of, facts, cell):
        values = [next(v for v in [*gold.answers, *gold.rejected] if v in documents[i].text) for i in gold.gold_doc_ids]
        assert len(set(values)) == 3 and max(values, key=int) == gold.answers[0]


def test_a_summary_has_every_key_fact_of_its_topics(make, facts, documents_of) -> None:
    cell = cells(make, summary, "summary", facts, 6, topics=2)[0]
    for question, gold, documents in seen(documents_of, facts, cell):
        assert len(gold.answers) == len(gold.gold_doc_ids) == 8
        assert all(v in documents[i].text for v, i in zip(gold.answers, gold.gold_doc_ids, strict=True))
        assert question.answer_prefix == summary.PREFIX


def gold_row(**values) -> dict:
    return {"answers": [], "gold_doc_ids": [], "rejected": [], "group": None, **values}


def scored(text: str, gold: dict, metric: str) -> dict[str, float]:
    return {name: value for _, name, value in score.cell_scores([Answer("q", text)], {"q": gold}, metric, "here")}


@pytest.mark.parametrize(
    ("text", "accuracy", "rejected"), [("it is 222", 1, 0), ("111, now 222", 0, 1), ("111", 0, 1), ("2221", 0, 0)]
)
def test_an_answer_that_says_an_outdated_value_is_wrong(text, accuracy, rejected) -> None:
    found = scored(text, gold_row(answers=["222"], rejected=["111"]), "contains")
    assert found == {"accuracy": accuracy, "rejected": rejected}


@pytest.mark.parametrize(
    ("text", "answers", "accuracy", "abstained"),
    [
        ("This is not mentioned.", [], 1, 1),
        ("I don't know", [], 1, 1),
        ("111", [], 0, 0),
        ("not mentioned, perhaps 222", ["222"], 0, 1),
        ("222", ["222"], 1, 0),
        ("", [], 0, 0),
    ],
)
def test_abstaining_is_right_only_where_there_is_no_answer(text, answers, accuracy, abstained) -> None:
    found = scored(text, gold_row(answers=answers), "answer_or_abstain")
    assert found == {"accuracy": accuracy, f"abstained/{'answerable' if answers else 'unanswerable'}": abstained}


def test_abstaining_while_leaking_the_removed_value_is_wrong() -> None:
    assert scored("not mentioned, but 111", gold_row(rejected=["111"]), "answer_or_abstain")["accuracy"] == 0


def test_every_wording_is_the_worst_of_its_group() -> None:
    gold = {
        name: gold_row(answers=["5"], group=group) for name, group in (("a", "x"), ("b", "x"), ("c", "y"), ("d", None))
    }
    answers = [Answer(name, text) for name, text in (("a", "5"), ("b", "6"), ("c", "5"), ("d", "5"))]
    found = [
        (q, value) for q, name, value in score.cell_scores(answers, gold, "contains", "here") if name == "every_wording"
    ]
    assert found == [("a", 0.0), ("b", 0.0)]  # a group of one answered question compares nothing


def test_coverage_counts_whole_values() -> None:
    assert scored("1234, 56 and 789", gold_row(answers=["1234", "567", "89", "56"]), "coverage")["accuracy"] == 0.5
