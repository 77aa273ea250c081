"""Sets from small files in every layout: documents, gold, the growing tail without answers, and training kept apart."""

from __future__ import annotations

import gzip
import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from msa_base.errors import UserError
from msa_base.seal import file_digest
from msa_base.tables import read_table as read_rows
from msa_base.tables import unavailable, write_unavailable
from tasks import qa
from tasks.base import OWN_MEMORY
from tasks.parts.tail import Tail, UnavailableData
from tasks.qa import distractors, readers, samples, scaling, table
from tasks.qa.data import COLUMNS
from tasks.qa.readers import read_set
from tasks.qa.records import SetData, text_key
from tasks.stages.prepare import write_corpus

LONG = " ".join(f"Filler sentence number {number} says little." for number in range(40))


def pages(number: int) -> list[dict]:
    """A question with one passage of its own and one that does not support it."""
    paragraphs = [
        {"title": f"Town {number}", "text": f"Town {number} was founded by Person{number}.", "is_supporting": True},
        {
            "title": f"River {number}",
            "text": f"River {number} is long. {LONG if number == 3 else ''}",
            "is_supporting": False,
        },
    ]
    return [
        {
            "id": f"q{number}",
            "question": f"Who founded Town {number}?",
            "answer": f"Person{number}",
            "paragraphs": paragraphs,
        }
    ]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A data directory with one evaluation set, one training set and passages, and the table that describes them."""
    data = tmp_path / "data"
    squad = [
        {
            "context": f"Alpha {number} lies in Beta{number} county. It has rivers.",
            "qas": [
                {"id": f"s{number}", "question": f"Where lies Alpha {number}?", "answers": [{"text": f"Beta{number}"}]}
            ],
        }
        for number in range(30)
    ]
    # two that are evaluated too: a question, and a sentence of a passage
    squad[3]["qas"][0]["question"] = "who founded town 5"
    squad[4]["context"] = "The story begins here in the old harbour town today. Alpha 4 lies in Beta4 county."
    rows = [row for number in range(12) for row in pages(number)]
    rows[7]["paragraphs"][1]["text"] = "Another tale. The story begins here in the old harbour town today!"
    wiki = [["Hills\nHills are high.", "Person2 once slept here."], ["Hills\nHills are high.\nSome have snow."]]
    files = {
        "towns/q.json": json.dumps(rows),
        "squad/s.json": json.dumps({"data": [{"title": "A", "paragraphs": squad}]}),
        "wiki/w.json": json.dumps({"retrieved_docs": wiki}),
    }
    lines = ["\t".join(COLUMNS)]
    entries = {}
    for name, text in files.items():
        path = data / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        digest = file_digest(path)
        lines.append("\t".join([name, str(len(text)), digest, "some/repo", name, "a" * 40, "MIT"]))
        folder = path.parent.name
        reader, use = {
            "towns": ("hipporag", "evaluation"),
            "squad": ("squad", "training"),
            "wiki": ("retrieved_passages", "distractors"),
        }[folder]
        form = {
            "name": "f",
            "reader": reader,
            "host": "github",
            "repository": "some/repo",
            "revision": "a" * 40,
            "split": "dev",
            "licence": "MIT",
        }
        form["files"] = {"questions": {"at": name, "path": name, "sha256": digest}}
        entries[folder] = {
            "title": folder,
            "language": "en",
            "documents": "d",
            "answers": "a",
            "gold": "g",
            "use": use,
            "forms": [form],
        }
    (data / "MANIFEST.tsv").write_text("\n".join(lines) + "\n")
    path = tmp_path / "sets.yaml"
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    monkeypatch.setattr(table.read_table, "__defaults__", (path,))
    return data


def corpus(make, data, name, num_tokens=10**9, module=qa, **params) -> Tail:
    request = replace(make.corpus(name, num_tokens, **params), data=data)
    path = data.parent / name / "corpus.parquet"
    write_corpus(module.make_corpus(request), path, num_tokens)
    return Tail(path)


def ask(make, data, tail, questions, contexts, corpus_params, module=qa, **params):
    request = replace(make.task("t", tail, questions, contexts, corpus_params, **params), data=data)
    return list(module.prepare(request))


@pytest.mark.parametrize("chunking", ["sentences", "fixed", "paragraphs", "similar"])
def test_a_set_over_its_own_memory(make, place, chunking) -> None:
    params = {"set": "towns", "chunking": chunking, "document_tokens": 96}
    tail = corpus(make, place, f"towns-{chunking}", **params)
    documents = {item.doc_id: item for item in tail.take(set(range(len(tail.ends)))).values()}
    assert len(documents) > 24 and max(item.num_tokens for item in documents.values()) <= 96  # the long passage was cut
    [cell] = ask(make, place, tail, 12, {OWN_MEMORY: 10**9}, params)
    assert cell.base_documents == len(documents) and not cell.overlays
    assert cell.notes["chunking"] == {"strategy": chunking, "document_tokens": 96}
    assert cell.notes["source"]["form"] == "f" and list(cell.notes["source"]["sha256"]) == ["towns/q.json"]
    for question, gold in zip(cell.questions, cell.gold, strict=True):
        number = question.text.removeprefix("Who founded Town ").removesuffix("?")
        assert gold.answers == [f"Person{number}"]
        assert [f"founded by Person{number}." in documents[doc_id].text for doc_id in gold.gold_doc_ids] == [True]
    again = ask(make, place, tail, 4, {OWN_MEMORY: 10**9}, params)[0]
    assert [item.text for item in again.questions] == [item.text for item in cell.questions[:4]]


def test_gold_of_a_long_passage_is_the_part_with_the_answer(make, place) -> None:
    path = place / "towns" / "q.json"
    rows = json.loads(path.read_text())
    rows[0]["paragraphs"][0]["text"] = f"{LONG} Town 0 was founded by Person0. {LONG}"
    found = rewrite(place, path, json.dumps(rows))
    params = {"set": "towns", "document_tokens": 96}
    tail = corpus(make, found, "long", **params)
    [cell] = ask(make, found, tail, 12, {OWN_MEMORY: 10**9}, params)
    [gold] = [item for item in cell.gold if item.answers == ["Person0"]]
    assert len(gold.gold_doc_ids) == 1
    documents = {item.doc_id: item.text for item in tail.take(set(range(len(tail.ends)))).values()}
    assert "Person0" in documents[gold.gold_doc_ids[0]]


def rewrite(place: Path, path: Path, text: str) -> Path:
    """Change a file and the table's checksum of it."""
    before = file_digest(path)
    path.write_text(text)
    file = table.read_table.__defaults__[0]
    file.write_text(file.read_text().replace(before, file_digest(path)))
    return place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(id="q0"), "question id 'q0' stands there twice"),
        (lambda rows: rows[1].update(answer=""), "question q1 has an empty answer among"),
        (lambda rows: rows[1].update(answer=[]), "question q1 has no answers"),
        (lambda rows: rows[1].update(question=" "), "question q1 has no text"),
        (lambda rows: rows[1].pop("paragraphs"), "not what the reader hipporag expects"),
        (lambda rows: rows.append(7), "not what the reader hipporag expects"),
    ],
)
def test_bad_rows_leave_no_corpus(make, place, change, message) -> None:
    path = place / "towns" / "q.json"
    rows = json.loads(path.read_text())
    change(rows)
    rewrite(place, path, json.dumps(rows))
    with pytest.raises(UserError, match=f"q.json: {message}"):
        corpus(make, place, "bad", set="towns")
    assert not (place.parent / "bad").exists() or not list((place.parent / "bad").iterdir())


def test_a_changed_file_is_refused(make, place) -> None:
    (place / "towns" / "q.json").write_text("[]")
    with pytest.raises(
        UserError, match=r"towns/q\.json: wrong checksum: sha256 .* delete it and fetch it again: python -m"
    ):
        corpus(make, place, "changed", set="towns")


def test_bad_parameters_are_named(make, place) -> None:
    with pytest.raises(UserError, match="unknown name 'twons'; did you mean 'towns'"):
        corpus(make, place, "x", set="twons")
    with pytest.raises(UserError, match=r"key 'form': set towns has no form 'g' \(known: f\)"):
        corpus(make, place, "x", set="towns", form="g")
    with pytest.raises(UserError, match=r"key 'chunking' must be .*sentences"):
        corpus(make, place, "x", set="towns", chunking="semantic")
    tail = corpus(make, place, "towns", set="towns")
    with pytest.raises(UserError, match="13 questions are asked, set towns in its form f has 12"):
        ask(make, place, tail, 13, {OWN_MEMORY: 10**9}, {"set": "towns"})
    with pytest.raises(UserError, match="context 16K: a set is asked over its own memory"):
        ask(make, place, tail, 3, {"16K": 16384}, {"set": "towns"})


def test_an_unavailable_corpus_says_why(make, place) -> None:
    (place / "towns" / "q.json").unlink()
    with pytest.raises(
        UnavailableData, match=r"towns/q\.json: not there; fetch it: python -m tasks\.qa\.fetch --data .* --set towns"
    ):
        corpus(make, place, "gone", set="towns")
    path = place.parent / "gone.parquet"
    write_unavailable("no such file; run this", path)
    assert unavailable(path) == "no such file; run this" and read_rows("corpus", path) == []
    with pytest.raises(UnavailableData, match="no such file; run this"):
        Tail(path)


SWEEP = {"set": "towns", "fill": ["wiki", "prose"], "askable": 4, "document_tokens": 96}


def test_the_sweep_keeps_questions_and_holds_no_answer(make, place) -> None:
    tail = corpus(make, place, "sweep", 40_000, module=scaling, **SWEEP)
    cells = ask(
        make, place, tail, 4, {"16K": 16384, "32K": 32768, "1M": 1_000_000}, SWEEP, module=scaling, head_tokens=2000
    )
    small, large, absent = cells
    assert [item.text for item in small.questions] == [
        item.text for item in large.questions
    ] and small.gold == large.gold
    assert small.base_documents < large.base_documents
    assert absent.unavailable.startswith("the tail holds ") and "apt-get download" in absent.unavailable
    asked = {answer for gold in large.gold for answer in gold.answers}
    texts = [item.text for item in tail.take(set(range(len(tail.ends)))).values()]
    assert len(asked) == 4 and not [text for text in texts if any(answer in text for answer in asked)]
    lines = Counter(text_key(line) for text in texts for line in text.split("\n"))
    assert sum("Hills are high." in text for text in texts) == 1 and any("Some have snow." in text for text in texts)
    assert lines.most_common(1)[0][1] == 1
    others = [number for number in range(12) if f"Person{number}" not in asked]
    assert all(any(f"founded by Person{number}." in text for text in texts) for number in others)
    for question, gold in zip(large.questions, large.gold, strict=True):
        head = {item.doc_id: item for item in large.overlays[question.overlay_id]}
        assert gold.answers[0] in head[gold.gold_doc_ids[0]].text
        assert not set(head) & set(tail.doc_ids.tolist())
        assert sum(item.num_tokens for item in head.values()) <= 2000


def test_leaks_by_whole_tokens() -> None:
    leaks = distractors.Leaks(["Ann Lee", "yes", "12", "Paris", "北京", "京"])
    assert leaks.checked == 3 and leaks.unchecked == {"yes", "12", "京"}
    assert leaks.holds("Then ann, the LEE!") and leaks.holds("in Paris.") and leaks.holds("他在北京。")
    assert not leaks.holds("Annlee and Parisians say yes 12 times, Lee Ann") and not leaks.holds("他在上海。")


def test_each_line_once() -> None:
    once = distractors.SeenLines()
    assert once.text("One line.\n\nOne  LINE\nanother\n---") == "One line.\nanother"
    assert once.text("another\none line") == ""


def test_blocks_are_whole_lines() -> None:
    text = "\n".join(f"line {number} " + "x" * 90 for number in range(700))
    parts = list(distractors.blocks(text))
    assert "\n".join(parts) == text and 3 <= len(parts) <= 5
    assert list(distractors.blocks("one")) == ["one"]


def test_documentation_pages(tmp_path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.html").write_text("<p>One &amp; two</p><script>x()</script><p>three</p>")
    (tmp_path / "p" / "b.txt.gz").write_bytes(gzip.compress(b"plain"))
    (tmp_path / "p" / "c.png").write_bytes(b"no text")
    pages = list(distractors.documentation(tmp_path))
    assert [page.split() for page in pages] == [["One", "&", "two", "three"], ["plain"]]
    (tmp_path / "p" / "d.dict.dz").write_bytes(gzip.compress(b"cut")[:-5])
    with pytest.raises(UserError, match=r"d\.dict\.dz: not a whole gzip file"):
        list(distractors.documentation(tmp_path))


def test_training_and_evaluation_share_nothing(make, place) -> None:
    parameters = {"set": "squad", "bank_tokens": 400, "banks": 6, "questions": 8, "document_tokens": 96}
    directory = place.parent / "samples"
    line = samples.write(parameters, "profile: samples: squad", make.tokenizer, str(place), directory)
    assert "1 passages and 2 questions overlap with evaluation and are left out" in line
    banks, rows = (read_rows(name, directory / f"{name}.parquet") for name in ("banks", "samples"))
    evaluated = samples.overlap_keys(samples.evaluated(place, "here"))
    assert len(evaluated) > 24 and rows and banks
    assert not [row for row in banks if not evaluated.isdisjoint(samples.keys_of(row["text"]))]
    assert not [row for row in rows if text_key(row["question"]) in evaluated]
    by_id = {(row["bank_id"], row["doc_id"]): row["text"] for row in banks}
    assert all(row["answer"] in by_id[row["bank_id"], row["chain"][0][0]] for row in rows)


def test_a_training_question_of_several_hops_has_a_round_for_each_gold_passage(make, tmp_path, monkeypatch) -> None:
    found = SetData(tmp_path)
    for number in range(8):
        texts = [f"Person{number} was born in Town {number}.", f"Town {number} lies in Land{number}."]
        gold = found.add_passages(texts)
        own = [*gold, *found.add_passages([f"River {number} is long."])]
        found.add_question(f"q{number}", f"Where was Person{number} born?", [f"Land{number}"], gold, own=own)
    monkeypatch.setattr(samples, "find_set", lambda *_: SimpleNamespace(read=lambda _: found))
    monkeypatch.setattr(samples, "evaluated", lambda *_: iter(()))
    parameters = {"set": "squad", "bank_tokens": 120, "banks": 4, "questions": 8, "hops": True}
    samples.write(parameters, "profile: samples: two", make.tokenizer, None, tmp_path / "samples")
    banks, rows = (read_rows(name, tmp_path / "samples" / f"{name}.parquet") for name in ("banks", "samples"))
    by_id = {(row["bank_id"], row["doc_id"]): row["text"] for row in banks}
    assert len(rows) >= 4
    for row in rows:
        first, second = (by_id[row["bank_id"], doc_id] for (doc_id,) in row["chain"])
        assert first.startswith("Person") and second.startswith("Town") and row["answer"] in second


def test_readers_of_the_other_layouts(tmp_path) -> None:
    def made(name: str, content) -> list[Path]:
        path = tmp_path / name
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(content), path)
        elif name.endswith(".pkl"):
            path.write_bytes(pickle.dumps(content))
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return [path]

    def texts(found, question_id) -> list[str]:
        return [found.passages[key] for key in found.questions[question_id].gold]

    facts = {
        "supporting_facts": [["B", 1], ["A", 0]],
        "context": [["A", ["a one.", "a two."]], ["B", ["b one.", " b two."]], ["C", ["c."]]],
    }
    found = read_set(
        "hipporag",
        {
            "questions": made(
                "h.json",
                [
                    {"_id": "h", "question": "?", "answer": "x", **facts},
                    {"_id": "i", "question": "?", "answer": "x", "supporting_facts": [["Z", 0]]},
                ],
            )
        },
        "",
    )
    assert texts(found, "h") == ["B\nb one. b two.", "A\na one. a two."] and found.questions["h"].evidence == (
        " b two.",
        "a one.",
    )
    assert found.left_out == {"supporting passages without text": 1}

    popqa = {
        "id": 5,
        "question": "?",
        "obj": "politician",
        "o_wiki_title": "Politician",
        "possible_answers": '["politician", "pol"]',
        "o_aliases": '["leader"]',
        "paragraphs": [{"title": "T", "text": "x politician"}],
    }
    found = read_set("hipporag", {"questions": made("p.json", [popqa])}, "")
    assert found.questions["5"].answers == ("politician", "pol", "leader", "Politician")

    page = {"title": "网", "paragraphs": ["一。", "二。"], "is_selected": True}
    rows = [
        {"question_id": 1, "question": "何?", "answers": ["一"], "documents": [page]},
        {"question_id": 2, "question": "何?", "answers": [], "documents": [page]},
    ]
    found = read_set("dureader", {"questions": made("d.jsonl", "\n".join(map(json.dumps, rows)))}, "")
    assert texts(found, "1") == ["网\n一。\n\n二。"] and found.left_out == {"no answer": 1}

    hits = [
        {"qid": 9, "docid": name, "content": text}
        for name, text in (("1", "best"), ("2", "related"), ("3", "none"), ("4", "unjudged"))
    ]
    files = {
        "bm25": made("b.json", [{"query": "what", "hits": hits}]),
        "qrels": made("q.txt", "9 0 1 3\n9 0 2 1\n9 0 3 0\n9 0 8 2\n"),
    }
    found = read_set("trec_dl", files, "")
    assert texts(found, "9") == ["best"] and found.questions["9"].answers == ()
    assert {found.passages[key]: grade for key, grade in found.questions["9"].grades} == {"best": 3.0, "related": 1.0}

    answer = {"value": "Ann", "aliases": ["Annie"]}
    row = {
        "question_id": "t",
        "question": "?",
        "answer": answer,
        "entity_pages": {"title": ["P"], "wiki_context": ["of Annie."]},
        "search_results": {"title": ["S"], "search_context": ["nothing"]},
    }
    found = read_set("triviaqa", {"rows": made("t.parquet", [row])}, "")
    assert texts(found, "t") == ["P\nof Annie."] and len(found.passages) == 2

    chunk = [{"idx": "s1_0", "title": "S", "text": "Ann won."}, {"idx": "s1_1", "title": "S", "text": "Bob lost."}]
    story = [{"document": {"id": "s1"}, "question": {"text": "Who won?"}, "answer": [{"text": "Ann"}]}]
    found = read_set("narrative_stories", {"corpus": made("c.json", chunk), "questions": made("n.json", story)}, "")
    assert texts(found, "0") == ["S\nAnn won."]

    released = {
        "questions": made("q.pkl", [{"query": "?", "reference_list": ["r"], "answer": ["x", "y"]}]),
        "memory": made("m.pkl", ["r", "s"]),
    }
    found = read_set("released", released, "")
    assert texts(found, "0") == ["r"] and found.questions["0"].answers == ("x", "y") and len(found.passages) == 2

    oracle = [{"question": "?", "answers": ["x"], "ctxs": [{"title": "T", "text": "t x", "isgold": True}]}]
    path = tmp_path / "o.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(oracle[0]).encode()))
    assert texts(read_set("gold_contexts", {"questions": [path]}, ""), "0") == ["T\nt x"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"o\.jsonl\.gz: not what the reader gold_contexts expects"):
        read_set("gold_contexts", {"questions": [path]}, "")
    assert set(readers.READERS) >= {form.reader for spec in table.read_table().values() for form in spec.forms}
