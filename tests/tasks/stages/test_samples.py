"""Training banks hold every task's form, of training names and prose only."""

from __future__ import annotations

import re

import pytest

from msa_base.errors import UserError
from tasks import haystack, multihop, ruler, scaling
from tasks.parts import wording
from tasks.parts.chunking import make_documents, wrapper_tokens
from tasks.parts.prose import Prose
from tasks.parts.splitting import split_sentences
from tasks.qa.records import text_key
from tasks.stages import samples

CORPORA = (
    (haystack, "overlap-prose", {"form": "prose"}),
    (scaling, "overlap-facts", {}),
    (multihop, "overlap-chains", {}),
)


@pytest.fixture(scope="module")
def banks(tokenizer, prose):
    """Six banks: documents by id, and their samples."""
    spec = samples.SampleSpec(bank_tokens=3072, banks=6, questions=40)
    read, wrapper = Prose.read(tokenizer, prose, wording.TRAIN), wrapper_tokens(tokenizer)
    made = [samples.make_bank(bank, "short", spec, read, tokenizer, wrapper) for bank in range(spec.banks)]
    assert made[0] == samples.make_bank(0, "short", spec, read, tokenizer, wrapper)
    return [
        ({document.doc_id: document for document in make_documents(tokenizer, documents)}, rows)
        for documents, rows in made
    ]


def test_banks_keep_their_sizes(banks) -> None:
    for documents, rows in banks:
        assert 2900 <= sum(document.num_tokens for document in documents.values()) <= 3072
        assert max(document.num_tokens for document in documents.values()) <= 96
        assert len(rows) == 40


def test_answers_stand_in_the_chain(banks) -> None:
    tasks = set()
    for documents, rows in banks:
        for row in rows:
            tasks.add(row["task"])
            last = [documents[doc_id].text for doc_id in row["chain"][-1]]
            values = row["answer"].replace(", and ", ", ").split(", ")
            assert all(any(value in text for text in last) for value in values)
            assert len(values) == (4 if row["task"] in ("mv", "mq") else 1)
            assert len(row["chain"]) == (2 if row["task"] == "two_hop" else 1)
            if row["task"] == "mv":
                assert row["chain"][0] == sorted(row["chain"][0])
                assert all(value in text for value, text in zip(values, last, strict=True))
            note = row["notes"][-1]  # by chance another key may have the same number, or a longer one that holds it
            whole = re.compile(rf"\b{re.escape(note['value'])}\b")
            holders = [d.doc_id for d in documents.values() if whole.search(d.text) and note["key"] in d.text]
            assert holders == [note["doc_id"]]
    assert tasks == set(samples.WEIGHTS)


def test_notes_stand_in_their_documents_and_lead_to_the_answer(banks) -> None:
    for documents, rows in banks:
        for row in rows:
            assert {note["doc_id"] for note in row["notes"]} == {doc_id for group in row["chain"] for doc_id in group}
            for note in row["notes"]:
                assert note["key"] in documents[note["doc_id"]].text and note["value"] in documents[note["doc_id"]].text
            if row["task"] == "two_hop":
                assert row["notes"][0]["value"] == row["notes"][1]["key"]
                assert row["notes"][0]["key"] in row["question"] and row["notes"][1]["key"] not in row["question"]
            else:
                assert all(note["key"] in row["question"] for note in row["notes"])
            values = row["answer"].replace(", and ", ", ").split(", ")
            assert set(values) <= {note["value"] for note in row["notes"]}


def test_names_are_of_the_training_split(banks) -> None:
    seen = 0
    for _, rows in banks:
        for row in rows:
            if row["task"] in ("s1", "s2", "s3", "mk2", "mv") and row["question"].count("-") == 1:
                key = row["question"].split(" for ")[1].split(" mentioned")[0]
                assert wording.pair_role(*key.split("-")) == wording.TRAIN
                seen += 1
    assert seen > 20


def test_siblings_share_halves(banks) -> None:
    documents, _ = banks[0]
    text = " ".join(document.text for document in documents.values())
    keys = {part.split(" is:")[0] for part in text.split("magic numbers for ")[1:]}
    halves = [key.split("-")[0] for key in keys]
    assert len(set(halves)) < len(halves)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"s9": 1.0}}, "found 's9'; did you mean 's"),
        ({"weights": {"s2": 0.0}}, "key 's2' must be greater than 0"),
        ({"banks": -1}, "key 'banks' must be greater than 0"),
        ({"bare_share": float("nan")}, "key 'bare_share' must be a finite number"),
        ({"document_tokens": 40}, "document_tokens"),
        ({"bank_tokens": 100}, "bank_tokens"),
    ],
)
def test_bad_parameters(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        samples.sample_spec({"bank_tokens": 3072, "banks": 1, "questions": 4, **changes}, "tiny.yaml: samples: short")


def test_one_task_alone(tokenizer, prose) -> None:
    spec = samples.SampleSpec(bank_tokens=1024, banks=1, questions=5, weights={"mv": 1.0})
    documents, rows = samples.make_bank(
        0, "x", spec, Prose.read(tokenizer, prose, "train"), tokenizer, wrapper_tokens(tokenizer)
    )
    assert {row["task"] for row in rows} == {"mv"} and len(rows) == 5
    assert len(documents) >= 8


def test_bare_banks_hold_sentences_without_prose(tokenizer, prose) -> None:
    read, wrapper = Prose.read(tokenizer, prose, wording.TRAIN), wrapper_tokens(tokenizer)
    sizes = {}
    for share in (0.0, 1.0):
        spec = samples.SampleSpec(1024, 1, 8, bare_share=share, plain_share=0.0, weights={"facts": 1.0})
        documents, _ = samples.make_bank(0, "x", spec, read, tokenizer, wrapper)
        sizes[share] = len(documents)
        if share:
            assert all(text.count(".") == 1 for _, text in documents)
    assert sizes[1.0] > 2 * sizes[0.0]


def test_a_bank_may_be_about_one_task(tokenizer, prose) -> None:
    """Then its documents differ in names alone, and every task gets its banks."""
    spec = samples.SampleSpec(
        bank_tokens=1536, banks=40, questions=12, bare_share=1.0, plain_share=0.0, tasks_per_bank=1
    )
    read, wrapper = Prose.read(tokenizer, prose, wording.TRAIN), wrapper_tokens(tokenizer)
    seen = set()
    for bank in range(spec.banks):
        documents, rows = samples.make_bank(bank, "one", spec, read, tokenizer, wrapper)
        asked = {row["task"] for row in rows}
        assert len(asked) == 1 and len(rows) == 12 and documents
        seen |= asked
    assert len(seen) > 5


def test_nothing_evaluated_is_trained_on(banks, make) -> None:
    tails = [make.tail(module, name, 40_000, **params) for module, name, params in CORPORA]
    cells = [
        *scaling.prepare(make.task("f", tails[1], 40, {"32K": 32768}, replicates=2, head_tokens=6000)),
        *multihop.prepare(make.task("m", tails[2], 20, {"32K": 32768}, replicates=2, head_tokens=6000)),
        *ruler.prepare(make.task("r", tails[0], 20, {"32K": 32768}, haystack="prose", value="uuid", num_keys=4)),
    ]
    evaluated = [
        text for tail in tails for text in (item.text for item in tail.take(set(range(len(tail.ends)))).values())
    ]
    evaluated += [item.text for cell in cells for documents in cell.overlays.values() for item in documents]
    kept = {text_key(sentence) for text in evaluated for sentence in split_sentences(text)}
    asked = {text_key(question.text) for cell in cells for question in cell.questions}
    trained = [item.text for documents, _ in banks for item in documents.values()]
    noise = {text_key(sentence) for sentence in wording.RULER_NOISE}  # RULER's noise is the same everywhere
    sentences = {text_key(sentence) for text in trained for sentence in split_sentences(text)} - noise
    questions = {text_key(row["question"]) for _, rows in banks for row in rows}
    assert len(sentences) > 500 and len(kept) > 1500 and len(questions) > 150 and len(asked) == 80
    assert not sentences & kept
    assert not questions & asked


def test_keyed_answers_say_the_key_before_its_values(tokenizer, prose) -> None:
    read, wrapper = Prose.read(tokenizer, prose, wording.TRAIN), wrapper_tokens(tokenizer)
    made = {}
    for keyed in (False, True):
        spec = samples.SampleSpec(bank_tokens=3072, banks=2, questions=60, keyed_answers=keyed)
        made[keyed] = [samples.make_bank(bank, "short", spec, read, tokenizer, wrapper) for bank in range(spec.banks)]
    seen = set()
    for (documents, plain), (same, rows) in zip(made[False], made[True], strict=True):
        assert documents == same
        for before, row in zip(plain, rows, strict=True):
            assert {**row, "answer": before["answer"]} == before
            keys = [note["key"] for note in row["notes"]]
            said = re.findall(r"(\S+) is: ", row["answer"])
            if row["task"] in ("facts", "two_hop", "mk3"):
                assert row["answer"] == ("is: " if row["task"] == "mk3" else "") + before["answer"]
                continue
            seen.add(row["task"])
            assert said == list(dict.fromkeys(keys))
            assert re.sub(r"\S+ is: ", "", row["answer"]) == before["answer"]
    assert seen == {"s1", "s2", "s3", "mk2", "mv", "mq"}
