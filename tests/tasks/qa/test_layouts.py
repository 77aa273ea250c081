"""Layouts that people have: the hub's, SQuAD 2.0, LoCoMo, XQuAD; what differs stays apart, gold where it is."""

from __future__ import annotations

import gzip
import itertools
import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from msa_base.blank import is_blank
from msa_base.errors import UserError
from msa_base.seal import file_digest
from tasks.base import OWN_MEMORY
from tasks.qa import table
from tasks.qa.documents import gold_chunks
from tasks.qa.readers import READERS, read_set
from tasks.qa.records import QuestionRecord, SetData, text_key
from tests.tasks.qa.test_qa import ask, corpus


@pytest.fixture
def made(tmp_path):
    """Writes a file in the way that its name says, and gives it as the files of a role."""

    def make(name: str, content: Any) -> list[Path]:
        path = tmp_path / name
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(content), path)
        elif name.endswith(".jsonl"):
            path.write_bytes(
                b"\xef\xbb\xbf" + "\n".join(json.dumps(row, ensure_ascii=False) for row in content).encode()
            )
        elif name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as archive:
                for member, value in content.items():
                    archive.writestr(f"data/{member}.json", json.dumps(value))
        else:
            text = json.dumps(content).encode()
            path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return [path]

    return make


def gold(found: SetData, question_id: str) -> list[str]:
    return [found.passages[key] for key in found.questions[question_id].gold]


CONTEXT = [["A", ["a one.", " a two."]], ["B", ["b one.", " b two."]], ["A", ["a other."]], ["C", ["c."]]]
FACTS = [["B", 1], ["A", 0], ["B", 7]]  # the third names no sentence, as some of HotpotQA's do
HUB = {
    "context": {"title": [title for title, _ in CONTEXT], "sentences": [sentences for _, sentences in CONTEXT]},
    "supporting_facts": {"title": [title for title, _ in FACTS], "sent_id": [number for _, number in FACTS]},
}
LAYOUTS = {
    "authors": {"context": CONTEXT, "supporting_facts": FACTS},
    "hub": HUB,
    "rows": {
        "context": [{"title": title, "sentences": sentences} for title, sentences in CONTEXT],
        "supporting_facts": [{"title": title, "sent_id": number} for title, number in FACTS],
    },
    "text": {key: json.dumps(value) for key, value in HUB.items()},
}


FILES = [(name, layout) for name in ("q.json", "q.jsonl", "q.json.gz", "q.parquet") for layout in LAYOUTS]
FILES.remove(("q.parquet", "authors"))  # its lists hold text and numbers, which Parquet's cannot


@pytest.mark.parametrize(("name", "layout"), FILES)
def test_hotpotqa_is_the_same_in_every_layout(made, name, layout) -> None:
    layout = LAYOUTS[layout]
    rows = [{"id": "h", "question": "Which?\u2028One", "answer": "x", "type": "bridge", "level": "hard", **layout}]
    found = read_set("hipporag", {"questions": made(name, rows)}, "")
    assert gold(found, "h") == ["B\nb one. b two.", "A\na one. a two.", "A\na other."]
    assert found.questions["h"].evidence == (" b two.", "a one.", "a other.")
    assert found.questions["h"].text == "Which?\u2028One" and len(found.passages) == 4 and not found.left_out


def test_musique_of_the_hub_and_ids_that_look_like_nothing(made) -> None:
    paragraphs = {"title": ["T", "U"], "paragraph_text": ["t.", "u."], "is_supporting": [False, True]}
    row = {"id": 0, "question": "?", "answer": "x", "answer_aliases": None, "paragraphs": paragraphs}
    found = read_set("hipporag", {"questions": made("m.parquet", [row])}, "")
    assert gold(found, "0") == ["U\nu."]
    lost = {**row, "paragraphs": {**paragraphs, "is_supporting": [False, False]}}
    found = read_set("hipporag", {"questions": made("m.parquet", [lost])}, "")
    assert found.left_out == {"supporting passages without text": 1}


def test_a_title_without_text_is_not_made_up_for_by_another_with_two(made) -> None:
    facts = {"supporting_facts": [["A", 0], ["Z", 0]], "context": CONTEXT}
    found = read_set(
        "hipporag", {"questions": made("q.json", [{"_id": "h", "question": "?", "answer": "x", **facts}])}, ""
    )
    assert found.left_out == {"supporting passages without text": 1} and not found.questions


SQUAD = [
    {"id": "1", "context": "Rome lies on the Tiber.", "question": "Where?", "answers": ["the Tiber", "Tiber"]},
    {"id": "2", "context": "Rome lies on the Tiber.", "question": "When?", "answers": []},
]


def articles(rows: list[dict], **more: Any) -> dict:
    """SQuAD's nesting of rows."""
    paragraphs = [
        {
            "context": row["context"],
            "qas": [
                {
                    "id": row["id"],
                    "question": row["question"],
                    "is_impossible": not row["answers"],
                    "plausible_answers": [{"text": "753 BC", "answer_start": 0}],
                    "answers": [{"text": text, "answer_start": 0} for text in row["answers"]],
                }
            ],
        }
        for row in rows
    ]
    return {"version": "v2.0", "data": [{"title": "Rome", "paragraphs": paragraphs}], **more}


@pytest.mark.parametrize("hub", [False, True])
def test_squad_2_keeps_its_unanswerable_questions(made, hub) -> None:
    rows = [{**row, "answers": {"text": row["answers"], "answer_start": [0] * len(row["answers"])}} for row in SQUAD]
    files = {"articles": made("s.parquet", rows) if hub else made("s.json", articles(SQUAD))}
    found = read_set("squad_abstain", files, "")
    assert gold(found, "1") == ["Rome lies on the Tiber."] and found.questions["1"].answers == ("the Tiber", "Tiber")
    none = found.questions["2"]
    assert (none.answers, none.gold, none.own) == ((), (), (text_key("Rome lies on the Tiber."),))
    found = read_set("squad", files, "")
    assert list(found.questions) == ["1"] and found.left_out == {"no answer": 1}


def test_articles_of_another_file_are_left_out_by_title(made) -> None:
    rows = [{**SQUAD[0], "id": "3", "context": "Oslo lies on a fjord.", "answers": ["a fjord"]}]
    both = {
        "data": [{**articles(part)["data"][0], "title": title} for part, title in ((SQUAD, "Rome"), (rows, "Oslo"))]
    }
    other = {"data": [{"title": "Rome", "paragraphs": []}]}
    found = read_set("squad_apart", {"articles": made("a.json", both), "without": made("w.json", other)}, "")
    assert gold(found, "3") == ["Oslo lies on a fjord."] and list(found.questions) == ["3"]
    assert list(found.passages.values()) == ["Oslo lies on a fjord."]


def test_one_id_for_two_questions_keeps_both(made) -> None:
    german = [{**SQUAD[0], "context": "Rom liegt am Tiber.", "question": "Wo?", "answers": ["Tiber"]}]
    files = {
        "a": made("en.json", articles(SQUAD)),
        "b": made("de.json", articles(german)),
        "c": made("c.json", articles(SQUAD)),
    }
    found = read_set("squad", files, "")
    assert gold(found, "1") == ["Rome lies on the Tiber."] and gold(found, "1@de") == ["Rom liegt am Tiber."]
    assert found.left_out == {"no answer": 2, "in another file too": 1}


TALK = {
    "speaker_a": "Ann",
    "speaker_b": "Bob",
    "session_1_date_time": "1:56 pm on 8 May, 2023",
    "session_1": [
        {"speaker": "Ann", "dia_id": "D1:1", "text": "I ran a race."},
        {"speaker": "Bob", "dia_id": "D1:2", "text": "Bye!", "blip_caption": "a photo of a dog"},
    ],
    "session_2_date_time": "9:00 am on 9 May, 2023",
    "session_2": [{"speaker": "Ann", "dia_id": "D2:1", "text": "I ran a race."}],
    "session_3_date_time": "10:00 am on 10 May, 2023",
    "session_1_summary": "Ann ran.",
}
QA = [
    {"question": "When did Ann run first?", "answer": 2023, "evidence": ["D1:1"], "category": 2},
    {"question": "What do they share?", "answer": "a dog", "evidence": ["D1:2; D:2:01"], "category": 1},
    {"question": "What did Bob run?", "adversarial_answer": "a race", "evidence": ["D1:1"], "category": 5},
    {"question": "Lost?", "answer": "x", "evidence": ["D"], "category": 4},
    {"question": "Gone?", "answer": "x", "evidence": ["D1:1", "D9:9"], "category": 4},
]


@pytest.mark.parametrize("archive", [False, True])
def test_locomo_has_dated_turns_with_evidence_and_questions_without_an_answer(made, archive) -> None:
    one = {"a": {**TALK, "qa": QA}}
    content = made("l.zip", one) if archive else made("l.json", [{"sample_id": "a", "conversation": TALK, "qa": QA}])
    found = read_set("locomo", {"conversations": content}, "")
    assert gold(found, "a-0") == ["Ann and Bob, 1:56 pm on 8 May, 2023\nAnn: I ran a race."]
    assert gold(found, "a-1") == [
        "Ann and Bob, 1:56 pm on 8 May, 2023\nBob: Bye! [shows a photo of a dog]",
        "Ann and Bob, 9:00 am on 9 May, 2023\nAnn: I ran a race.",
    ]
    assert found.questions["a-0"].answers == ("2023",) and found.questions["a-0"].text.startswith("Ann and Bob: When")
    assert (found.questions["a-2"].answers, found.questions["a-2"].gold) == ((), ())
    assert found.left_out == {"evidence that names no turn": 2} and len(found.passages) == 3


def test_a_form_may_have_another_language_than_its_set() -> None:
    forms = {form.name: form.language for form in table.read_table()["xquad"].forms}
    assert len(forms) == 12 and all(name == language for name, language in forms.items())


# --- identity by code points

DIFFERENT = [
    "C",
    "C++",
    "c",
    "C#",
    "C ++",
    "Z\u00fcrich",
    "Zu\u0308rich",
    "\u212b",
    "\u00c5",
    "5",
    "-5",
    "...",
    "fi",
    "\ufb01",
    "a\u200db",
    "ab",
]


def test_passages_that_differ_are_never_merged() -> None:
    found = SetData(Path("here"))
    keys = [found.add_passage(text) for text in DIFFERENT]
    assert len(set(keys)) == len(DIFFERENT) and list(found.passages.values()) == DIFFERENT
    assert [found.add_passage(f" {text}\n") for text in DIFFERENT] == keys  # white space around a text is none of it


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: not is_blank(text)),
        min_size=1,
        max_size=6,
    )
)
def test_a_passage_is_known_by_its_code_points(texts) -> None:
    found = SetData(Path("here"))
    keys = found.add_passages(texts)
    assert [found.passages[key] for key in keys] == [text.strip() for text in texts]
    assert len(found.passages) == len({text.strip() for text in texts})


def test_gold_is_the_very_document_among_those_that_look_alike(made, make, tmp_path, monkeypatch) -> None:
    rows = [
        {
            "id": f"q{number}",
            "question": f"Number {number}?",
            "answer": "x",
            "paragraphs": [{"title": "", "text": text}],
        }
        for number, text in enumerate(["C is x", "c is x", "C++ is x", "C is x.", "Cafe\u0301 is x", "Caf\u00e9 is x"])
    ]
    place = data_directory(made, tmp_path, monkeypatch, "hipporag", rows)
    tail = corpus(make, place, "alike", set="alike")
    [cell] = ask(make, place, tail, 6, {OWN_MEMORY: 10**9}, {"set": "alike"})
    documents = {item.doc_id: item.text for item in tail.take(set(range(len(tail.ends)))).values()}
    for question, of in zip(cell.questions, cell.gold, strict=True):
        number = int(question.text.split()[1].rstrip("?"))
        assert [documents[doc_id] for doc_id in of.gold_doc_ids] == [rows[number]["paragraphs"][0]["text"]]


def data_directory(made, tmp_path, monkeypatch, reader: str, rows: list) -> Path:
    """A data directory with one set, and the table that describes it."""
    [path] = made("alike.json", rows)
    form = {"name": "f", "reader": reader, "host": "github", "repository": "some/repo", "revision": "a" * 40}
    form |= {"split": "dev", "licence": "MIT"}
    form["files"] = {"questions": {"at": "alike.json", "path": "alike.json", "sha256": file_digest(path)}}
    entry = {"title": "t", "language": "en", "documents": "d", "answers": "a", "gold": "g", "forms": [form]}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"alike": entry}))
    monkeypatch.setattr(table.read_table, "__defaults__", (tmp_path / "sets.yaml",))
    return tmp_path


def test_unanswerable_questions_become_questions_without_gold(made, make, tmp_path, monkeypatch) -> None:
    place = data_directory(made, tmp_path, monkeypatch, "squad_abstain", articles(SQUAD))
    tail = corpus(make, place, "abstain", set="alike")
    [cell] = ask(make, place, tail, 2, {OWN_MEMORY: 10**9}, {"set": "alike"})
    found = {question.text: of for question, of in zip(cell.questions, cell.gold, strict=True)}
    assert found["Where?"].answers and len(found["Where?"].gold_doc_ids) == 1
    assert found["When?"].answers == [] and found["When?"].gold_doc_ids == []
    assert cell.notes["source"]["language"] == "en"


# --- evidence at a boundary


def asked(*evidence: str, answers: tuple[str, ...] = ("nowhere",)) -> QuestionRecord:
    return QuestionRecord("q", "?", answers, (), evidence)


@pytest.mark.parametrize(
    ("chunks", "question", "places"),
    [
        (["one two", "three four", "five"], asked("two three"), [0, 1]),
        (["one two", "three four", "five"], asked("two  three\nfour five"), [0, 1, 2]),
        (["one two", "three four", "five"], asked("four"), [1]),
        (["one two", "three four", "five two"], asked("two"), [0, 2]),
        (["Cafe", "\u0301 one"], asked("Caf\u00e9 one"), [0, 1]),  # cut within a character of two code points
        (["Yor", "k is big", "x"], asked(answers=("York",)), [0, 1]),
        (["in New", "York it is", "x"], asked(answers=("New York",)), [0, 1]),
        (["in New", "York it is", "New York"], asked(answers=("New York",)), [0, 1, 2]),
        (["one", "two"], asked(), [0, 1]),  # nothing is found: the whole passage
        (["was born in 1", "950 was cold"], asked("was born in 1"), [0]),
        (["C++ is", "c is"], asked("C++ is"), [0]),
    ],
)
def test_evidence_that_a_boundary_cuts_keeps_its_documents(chunks, question, places) -> None:
    assert gold_chunks(chunks, question) == [chunks[place] for place in places]


@given(st.text("ab\u00e9\u0301 .", min_size=1, max_size=40), st.data())
def test_the_documents_of_any_evidence_cover_it(text, data) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    chunks = [text[start:end].strip() for start, end in itertools.pairwise([0, *cuts, len(text)])]
    chunks = [chunk for chunk in chunks if chunk]
    start = data.draw(st.integers(0, len(text) - 1))
    mark = text[start : data.draw(st.integers(start + 1, len(text)))]
    if not chunks or not mark.strip():
        return
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    found = gold_chunks(chunks, asked(unicodedata.normalize(form, mark)))
    wanted, read = (unicodedata.normalize("NFD", "".join(text.split())) for text in (mark, "".join(found)))
    assert wanted in read or len(found) == len(chunks)


# --- files of any content

VALUES = st.recursive(
    st.none() | st.integers(-2, 2) | st.text("ab ", max_size=3) | st.floats() | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=4,
)
ROWS = {
    "hipporag": [{"_id": "h", "question": "?", "answer": "x", **LAYOUTS["authors"]}],
    "squad_abstain": articles(SQUAD),
    "locomo": [{"sample_id": "a", "conversation": TALK, "qa": QA}],
    "dureader": [
        {
            "question_id": 1,
            "question": "?",
            "answers": ["a"],
            "documents": [{"title": "t", "paragraphs": ["p"], "is_selected": True}],
        }
    ],
    "gold_contexts": [{"question": "?", "answer": ["x"], "ctxs": [{"title": "t", "text": "x", "isgold": True}]}],
    "narrative_summaries": [{"context": "c", "qas": [{"question": "?", "answer": "x"}]}],
    "retrieved_passages": {"retrieved_docs": [["a", "b"]]},
}


def spots(value: Any, path: tuple = ()) -> list[tuple]:
    """The ways to every value within one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, part in inner for spot in spots(part, (*path, key)))]


def changed(value: Any, path: tuple, other: Any) -> Any:
    """A copy with another value at the end of a way."""
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], other)
    return copy


@pytest.mark.parametrize("reader", ROWS)
@given(data=st.data())
def test_a_changed_file_is_a_set_or_one_clear_error(tmp_path_factory, reader, data) -> None:
    assert reader in READERS
    rows = ROWS[reader]
    for _ in range(data.draw(st.integers(1, 2))):
        rows = changed(rows, data.draw(st.sampled_from(spots(rows))), data.draw(VALUES))
    path = tmp_path_factory.mktemp("fuzz") / "f.json"
    path.write_text(json.dumps(rows))
    role = "conversations" if reader == "locomo" else "questions"
    try:
        found = read_set(reader, {role: [path]}, "here")
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(text, str) and text.strip() for text in found.passages.values())
        assert all(set(item.gold) <= set(found.passages) for item in found.questions.values())
