"""Novels: real text from a data directory, names that its sentences leave out, and a machine without novels."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from msa_base.errors import UserError
from tasks import novel
from tasks.parts.tail import Tail, UnavailableData
from tasks.stages.prepare import write_corpus

PEOPLE = ("Anna", "Boris", "Clara")
HEADER = "The Project Gutenberg EBook of X\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n"


def story(number: int) -> str:
    """Sentences that each name one person inside, and distinct otherwise."""
    texts = [
        f"On day {place} the old miller gave {PEOPLE[place % 3]} a sack of flour number {place} ."
        for place in range(number)
    ]
    return HEADER + " ".join(texts) + " *** END OF THIS PROJECT GUTENBERG EBOOK X *** Donate to Zelda now ."


@pytest.fixture
def data(tmp_path):
    """A data directory with one novel as text, and one among stories."""
    (tmp_path / "novels").mkdir()
    (tmp_path / "novels" / "miller.txt").write_text(story(150))
    (tmp_path / "narrativeqa").mkdir()
    rows = [
        {"idx": f"b_{n}", "title": "The Project Gutenberg EBook of Y", "text": f"It was Dmitri {n} times ."}
        for n in (10, 9, 2)
    ]
    rows.append({"idx": "c_0", "title": "A Script", "text": "INT. KITCHEN"})
    (tmp_path / novel.STORIES).write_text(json.dumps(rows))
    return tmp_path


def prepared(make, data, contexts: dict[str, int], questions: int):
    """The tail of the novels and the cells of the task over it."""
    path = data / "corpus.parquet"
    request = replace(make.corpus("novels", 100_000), data=data)
    write_corpus(novel.make_corpus(request), path, 100_000)
    tail = Tail(path)
    return tail, list(novel.prepare(replace(make.task("novel", tail, questions, contexts), data=data)))


def test_texts_come_without_what_is_around_them(data) -> None:
    novels = novel.read_novels(data, "novels", "here")
    assert list(novels) == ["miller", "b: The Project Gutenberg EBook of Y"]
    assert novels["miller"].startswith("On day 0 the old miller gave Anna a sack") and novels["miller"].endswith("149.")
    assert [novels["b: The Project Gutenberg EBook of Y"].find(f"Dmitri {n} times.") for n in (2, 9, 10)] == [7, 30, 53]


def test_a_question_leaves_out_the_name_that_its_document_holds(make, data, documents_of) -> None:
    tail, (small, large) = prepared(make, data, {"1K": 1024, "2K": 2048}, 12)
    assert small.questions == large.questions and small.gold == large.gold
    assert small.base_documents < large.base_documents
    for question, gold in zip(small.questions, small.gold, strict=True):
        (name,), (doc_id,) = gold.answers, gold.gold_doc_ids
        sentence = question.text.removeprefix(novel.ASK.format(sentence=""))
        assert sentence.count(novel.BLANK) == 1 and name in PEOPLE and name not in sentence
        assert sentence.replace(novel.BLANK, name) in documents_of(tail, small, question)[doc_id].text
    assert small.floor == max(sum(g.answers == [name] for g in small.gold) for name in PEOPLE) / 12


def test_a_context_beyond_the_novels_is_unavailable(make, data) -> None:
    _, (small, large) = prepared(make, data, {"1K": 1024, "16K": 16384}, 6)
    assert small.unavailable is None and len(small.questions) == 6
    assert "put more there" in large.unavailable and "curl -L" in large.unavailable and not large.questions


def test_a_machine_without_novels_says_how_to_fetch_one(make, tmp_path) -> None:
    with pytest.raises(UnavailableData, match=rf"curl -L \S+ -o {tmp_path}/novels/"):
        list(novel.make_corpus(replace(make.corpus("novels", 4096), data=tmp_path)))
    with pytest.raises(UnavailableData, match="give --data"):
        list(novel.make_corpus(make.corpus("novels", 4096)))


def test_too_few_sentences_and_broken_stories(make, data) -> None:
    with pytest.raises(UserError, match="ask fewer, or name a larger context"):
        prepared(make, data, {"1K": 1024}, 500)
    (data / novel.STORIES).write_text('[{"idx": "b_x", "title": "Project Gutenberg", "text": "y"}]')
    with pytest.raises(UserError, match="not a list of story chunks"):
        novel.read_novels(data, "novels", "here")
