"""Tuning: every combination answers the same questions of the tuning split, and the record says which was best."""

from __future__ import annotations

import random

import pytest

from baselines.drivers import tune
from baselines.drivers.tune import measures, read_tuning
from msa_base.records import Answer
from msa_base.stage_records import TuningRecord
from msa_base.tables import read_table, write_table
from tests.baselines.conftest import Workplace, make_corpus, sentence

SEARCH = {"b": [0.1, 0.9], "read_k": [1, 3]}


@pytest.fixture
def tuned(workplace: Workplace) -> Workplace:
    """A workplace with a tuning split: two banks that share document ids, questions of two tasks."""
    rng = random.Random(0)
    banks, samples = [], []
    for bank in range(2):
        documents = make_corpus(random.Random(5), 20)  # the same ids in both
        rows = [{"bank_id": bank, **vars(document), "text": sentence(rng)} for document in documents]
        banks += rows
        for number, row in enumerate(rows[:6]):
            sample = {"sample_id": len(samples), "bank_id": bank, "task": f"t{number % 2}", "answer_prefix": ""}
            asked = " ".join(row["text"].split()[:8])
            notes = [{"key": "k", "value": value, "doc_id": row["doc_id"]} for value in "1234"]  # the last is not asked
            told = {"question": asked, "answer": "k is: 1, 2, and 3", "notes": notes}
            samples.append({**sample, **told, "chain": [[row["doc_id"]]]})
    directory = workplace.paths.samples("tuning")
    write_table("banks", banks, directory / "banks.parquet")
    write_table("samples", samples, directory / "samples.parquet")
    for name in ("rag_bm25", "rag_dense"):
        workplace.systems["systems"][name]["search"] = SEARCH if name == "rag_bm25" else {"read_k": [1, 2]}
    workplace.write_configs()
    return workplace


def test_the_split_is_one_corpus_of_unique_ids_whose_gold_is_the_documents_asked_about(tuned: Workplace) -> None:
    split = read_tuning(tuned.paths.samples("tuning"), 8)
    texts = {document.doc_id: document.text for document in split.view.base}
    assert len(texts) == 40 and len(split.questions) == 8
    for question in split.questions:
        assert split.values[question.question_id] == ["1", "2", "3"]
        (gold,) = split.gold[question.question_id]
        assert texts[gold].startswith(question.text) and question.overlay_id is None


def test_a_system_that_reads_everything_is_asked_over_the_first_bank_of_each_task(tuned: Workplace) -> None:
    path = tuned.paths.samples("tuning") / "samples.parquet"
    rows = [
        {**row, "task": "t2"} if row["bank_id"] == 1 and row["task"] == "t1" else row
        for row in read_table("samples", path)
    ]
    write_table("samples", rows, path)
    split = read_tuning(path.parent, 12, own_banks=True)
    assert len(split.questions) == 9  # of the second bank only those of the task that the first one lacks
    seen = set()
    for question in split.questions:
        held = {document.doc_id for document in split.view.documents(question)}
        assert len(held) == 20 and set(split.gold[question.question_id]) <= held
        seen.add(min(held))
    assert len(seen) == 2 and split.tokens == 20 * 40


def test_measures_are_means_over_questions(tuned: Workplace) -> None:
    split = read_tuning(tuned.paths.samples("tuning"), 2)
    first, second = (question.question_id for question in split.questions)
    answers = [Answer(first, "1 and 3", [*split.gold[first], 7]), Answer(second, "none", [7])]
    assert measures(answers, split) == {"correct": pytest.approx((2 / 3) / 2), "recall": 0.5}


def test_every_combination_is_tried_and_the_record_names_the_best(
    tuned: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tune, "measures", lambda answers, split: {"correct": len(answers[0].cited_doc_ids) / 10, "recall": 1.0}
    )
    assert tuned.command("tune", "--questions", "5") == 0
    record = TuningRecord.open(tuned.paths.tuning("rag_bm25"))
    assert [row.params for row in record.rows] == [{"b": b, "read_k": k} for b in (0.1, 0.9) for k in (1, 3)]
    assert record.best == {"b": 0.1, "read_k": 3} and record.entry == {"b": 0.75, "read_k": 2}
    assert record.questions == 5
    assert [row.correct for row in TuningRecord.open(tuned.paths.tuning("rag_dense")).rows] == [0.1, 0.2]
    assert not tuned.paths.tuning("closed_book").exists()


def test_a_search_that_was_killed_goes_on(tuned: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuned.command("tune", "--systems", "rag_bm25") == 0
    path, begun = tuned.paths.tuning("rag_bm25"), tuned.paths.tuning(".rag_bm25.begun")
    whole = [(row.params, row.correct, row.recall) for row in TuningRecord.open(path).rows]
    assert not begun.exists()
    path.unlink()
    path.with_name(f".{path.name}").unlink()
    asked, plain = [], tune.measures

    def killed(answers: list[Answer], split: object) -> dict[str, float]:
        asked.append(len(asked))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(answers, split)

    monkeypatch.setattr(tune, "measures", killed)
    assert tuned.command("tune", "--systems", "rag_bm25") == 130
    assert begun.exists() and not path.exists()
    assert tuned.command("tune", "--systems", "rag_bm25") == 0
    assert [(row.params, row.correct, row.recall) for row in TuningRecord.open(path).rows] == whole
    assert len(asked) == len(whole) + 1 and not begun.exists()  # the third was asked twice


def test_a_half_written_search_begins_anew(tuned: Workplace) -> None:
    begun = tuned.paths.tuning(".rag_bm25.begun")
    begun.parent.mkdir(parents=True)
    begun.write_text('{"made_from": "')
    assert tuned.command("tune", "--systems", "rag_bm25") == 0
    assert TuningRecord.open(tuned.paths.tuning("rag_bm25")) and not begun.exists()


def test_a_search_changes_no_cell(tuned: Workplace) -> None:
    assert tuned.run("rag_bm25") == 0
    path = tuned.paths.cell("rag_bm25", "needles", "1K", 0) / "run.json"
    before = path.stat().st_mtime_ns
    tuned.systems["systems"]["rag_bm25"]["search"] = {"b": [0.5]}
    tuned.write_configs()
    assert tuned.run("rag_bm25") == 0 and path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "search", "message"),
    [
        (("--systems", "closed_book"), {}, "closed_book: nothing to tune"),
        (("--systems", "rag_bm52"), {}, "did you mean 'rag_bm25'?"),
        (("--systems", "rag_bm25"), {"beta": [1]}, "unknown key 'beta'"),
        (("--systems", "rag_bm25"), {"read_k": [0]}, "'read_k' must be greater than 0, found 0"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(
    tuned: Workplace, capfd: pytest.CaptureFixture, arguments: tuple[str, ...], search: dict, message: str
) -> None:
    tuned.systems["systems"]["rag_bm25"]["search"] = search
    tuned.write_configs()
    assert tuned.command("tune", *arguments) == 2
    assert message in capfd.readouterr().err
