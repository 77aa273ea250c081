"""The commands end to end on a small profile: files, scores, messages and exit codes."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from msa_base.load import load
from msa_base.paths import DIRECTORY, Paths
from msa_base.records import Answer
from msa_base.seal import MadeFrom
from msa_base.stage_records import ViewRecord
from msa_base.tables import read_corpus, read_questions, read_table, read_view, write_predictions
from tasks.base import Gold, PreparedCell
from tasks.qa import count
from tasks.stages import prepare, score
from tests.evaluated import write_run

PROFILE = {
    "title": "small",
    "tokenizer": {"kind": "words"},
    "contexts": ["16K", "32K"],
    "tasks": {"niah_prose_s2": 4, "two_hop": 8},
    "systems": ["rag_bm25"],
    "seeds": [0],
    "models": ["backbone", "msa", "reader"],
    "samples": {name: {"bank_tokens": 2048, "banks": 2, "questions": 4} for name in ("bare", "short", "mixed", "long")},
    "latency": {"task": "two_hop", "questions": 1},
}


@pytest.fixture(scope="module")
def place(prose, tokenizer, tmp_path_factory) -> Path:
    """A results tree with prose and tokenizer, and a configuration beside it."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(DIRECTORY, root / "configs", ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    (root / "configs" / "profiles" / "mini.yaml").write_text(yaml.safe_dump(PROFILE))
    paths = Paths.of("mini", root / "results")
    shutil.copytree(prose, paths.prose)
    paths.tokenizer.parent.mkdir(parents=True)
    tokenizer.save(str(paths.tokenizer))
    return root


def run(monkeypatch, place: Path, module, *arguments: str) -> None:
    """Run a command's main in this process."""
    common = ["--profile", "mini", "--configs", str(place / "configs"), "--results", str(place / "results")]
    monkeypatch.setattr(sys, "argv", ["command", *arguments, *common])
    module.main()


@pytest.fixture
def prepared(place, monkeypatch) -> Paths:
    """The two-hop task of the small profile, on disk."""
    paths = Paths.of("mini", place / "results")
    if not paths.prepared("two_hop", "32K").exists():
        run(monkeypatch, place, prepare, "corpus", "--corpus", "chains")
        run(monkeypatch, place, prepare, "task", "--task", "two_hop")
    return paths


def test_prepared_files(prepared) -> None:
    corpus = read_corpus(prepared.corpus("chains"))
    for context, size in (("16K", 16384), ("32K", 32768)):
        directory = prepared.prepared("two_hop", context)
        view = ViewRecord.open(directory / "view.json")
        base = corpus[: view.base_documents]
        assert (view.corpus, view.context_tokens, view.base_tokens) == ("chains", size, base.num_tokens)
        questions = read_questions(directory / "questions.parquet")
        documents = {document.doc_id for document in read_view(directory, base).documents(questions[0])}
        gold = read_table("gold", directory / "gold.parquet")
        assert [row["question_id"] for row in gold] == [question.question_id for question in questions]
        assert set(gold[0]["gold_doc_ids"]) <= documents


def test_preparing_again_gives_the_same_bytes(prepared, place, monkeypatch) -> None:
    directory = prepared.prepared("two_hop", "16K")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    run(monkeypatch, place, prepare, "task", "--task", "two_hop")
    assert before == {path.name: path.read_bytes() for path in directory.iterdir()}


def answers_of(prepared: Paths, context: str, right: int) -> list[Answer]:
    gold = read_table("gold", prepared.prepared("two_hop", context) / "gold.parquet")
    return [
        Answer(
            row["question_id"],
            f"The answer is {row['answers'][0]}." if index < right else "no idea",
            cited_doc_ids=row["gold_doc_ids"][:1],
            routed_doc_ids={"layer2": [1, *row["gold_doc_ids"]]},
        )
        for index, row in enumerate(gold)
    ]


def test_scores(prepared, place, monkeypatch) -> None:
    answers = answers_of(prepared, "16K", right=3)[:6]  # max_questions left two out
    answers[5].text, answers[5].status = "", "timeout"
    write_predictions(answers, prepared.cell("rag_bm25", "two_hop", "16K", 0) / "predictions.jsonl")
    for context, status in (("16K", "ok"), ("32K", "out_of_memory")):
        write_run(prepared.cell("rag_bm25", "two_hop", context, 0), status)
    run(monkeypatch, place, score, "--system", "rag_bm25", "--task", "two_hop")
    rows = read_table("scores", prepared.cell("rag_bm25", "two_hop", "16K", 0) / "scores.parquet")
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["metric"], []).append(row["value"])
    assert values == {
        "accuracy": [1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        "recall@1/layer2": [0.0] * 6,
        "recall@16/layer2": [1.0] * 6,
        "citation_recall": [0.5] * 6,
    }
    assert read_table("scores", prepared.cell("rag_bm25", "two_hop", "32K", 0) / "scores.parquet") == []


SETS = {
    **PROFILE,
    "contexts": ["own"],
    "tasks": {"qa_popqa": 4, "qa_trec_dl": 4},
    "data": "no/such/directory",
    "latency": {"task": "qa_popqa", "questions": 1},
}


def test_a_machine_without_data_names_path_and_command(place, monkeypatch) -> None:
    (place / "configs" / "profiles" / "sets.yaml").write_text(yaml.safe_dump(SETS))
    paths = Paths.of("sets", place / "results")
    prepared = Paths.of("mini", place / "results")
    for name in (prepared.tokenizer.parent.name, prepared.prose.name):
        shutil.copytree(prepared.root / "_data" / name, paths.root / "_data" / name, dirs_exist_ok=True)
    common = ["--profile", "sets", "--configs", str(place / "configs"), "--results", str(place / "results")]
    for words in (["corpus", "--corpus", "qa_popqa"], ["task", "--task", "qa_popqa"]):
        monkeypatch.setattr(sys, "argv", ["prepare", *words, *common])
        prepare.main()
    directory = paths.prepared("qa_popqa", "own")
    reason = ViewRecord.open(directory / "view.json").unavailable
    assert reason.startswith("no/such/directory/popqa/qdata_hipporag_popqa.pkl, ")
    assert reason.endswith("not there; fetch it: python -m tasks.qa.fetch --data no/such/directory --set popqa")
    assert (
        read_questions(directory / "questions.parquet") == [] and read_table("gold", directory / "gold.parquet") == []
    )
    write_run(paths.cell("rag_bm25", "qa_popqa", "own", 0), "unavailable_data")
    monkeypatch.setattr(sys, "argv", ["score", "--system", "rag_bm25", "--task", "qa_popqa", *common])
    score.main()
    assert read_table("scores", paths.cell("rag_bm25", "qa_popqa", "own", 0) / "scores.parquet") == []
    assert ("PopQA", "not here", "-", "-", "-", "-", "-", "1.18M", "-") in list(
        count.rows(load("sets", place / "configs"), _only(paths, "qa_popqa"))
    )


def _only(paths: Paths, task: str) -> Paths:
    """The paths, with the other task of the profile prepared as that one is."""
    shutil.copytree(paths.prepared(task, "own"), paths.prepared("qa_trec_dl", "own"), dirs_exist_ok=True)
    return paths


def test_the_table_of_counts_takes_its_place_in_a_page(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{count.BEGIN}\nold\n{count.END}\nafter\n")
    count.replace_table(page, "new")
    assert page.read_text() == f"before\n{count.BEGIN}\nnew\n{count.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(score.UserError, match="has no place for the table"):
        count.replace_table(page, "new")
    assert page.read_text() == "no marks"


def test_graded_and_further_metrics() -> None:
    gold = {"answers": ["Ann"], "gold_doc_ids": [7], "grades": {7: 3.0, 8: 1.0}}
    answer = Answer("q", "It was Ann", cited_doc_ids=[7], routed_doc_ids={"first": [9, 8], "bm25": [8, 7]})
    found = dict(score.question_scores(answer, gold, "f1", True, ["exact_match", "substring", "ndcg@2", "recall@1"]))
    assert (found["accuracy"], found["exact_match"], found["substring"]) == (0.5, 0.0, 1.0)
    ideal = 3 + 1 / math.log2(3)
    assert found["ndcg@2/bm25"] == pytest.approx((1 + 3 / math.log2(3)) / ideal)
    assert found["ndcg@2/first"] == pytest.approx(1 / math.log2(3) / ideal)
    assert (found["recall@1/bm25"], found["recall@1/first"]) == (0.0, 0.0)  # grade 1 is not gold
    assert dict(score.question_scores(answer, gold, "f1", True, ["recall@2"]))["recall@2/bm25"] == 1.0
    assert found["recall@16/bm25"] == 1.0 and found["citation_recall"] == 1.0
    bare = {**gold, "answers": []}
    assert dict(score.question_scores(answer, bare, "ndcg@2", False))["accuracy"] == found["ndcg@2/bm25"]
    answer.routed_doc_ids = {}  # a system that ranks nothing is scored by what it cites
    assert dict(score.question_scores(answer, bare, "ndcg@2", False))["accuracy"] == pytest.approx(3 / ideal)
    with pytest.raises(score.UserError, match="'q' has no answers; give its task retrieval metrics alone"):
        list(score.cell_scores([answer], {"q": bare}, "f1", "here"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1.5, None, "1"])
def test_a_metric_that_gives_no_share_is_named(monkeypatch: pytest.MonkeyPatch, value) -> None:
    monkeypatch.setitem(score.METRICS, "odd", lambda prediction, answers, language: value)
    gold = {"answers": ["x"], "gold_doc_ids": [1], "rejected": None, "group": None}
    with pytest.raises(score.UserError, match=r"'odd' gives .* for question 'q'; a score is a number from 0 to 1"):
        list(score.cell_scores([Answer("q", "x")], {"q": gold}, "odd", "here"))


def test_grades_go_to_their_own_file_and_go_again(tmp_path) -> None:
    graded = PreparedCell("own", 0, gold=[Gold("q", [], [7], {7: 3.0, 8: 1.0})])
    view = {"corpus": "own", "context_tokens": 9}
    prepare.write_cell(graded, view, MadeFrom(), tmp_path)
    assert score.read_gold(tmp_path)["q"]["grades"] == {7: 3.0, 8: 1.0}
    prepare.write_cell(PreparedCell("own", 0, gold=[Gold("q", ["x"], [7])]), view, MadeFrom(), tmp_path)
    assert not (tmp_path / "grades.parquet").exists() and "grades" not in score.read_gold(tmp_path)["q"]


def test_answers_to_unknown_questions(prepared, tmp_path) -> None:
    write_predictions([Answer("nobody-asked", "x")], tmp_path / "predictions.jsonl")
    write_run(tmp_path)
    with pytest.raises(score.UserError, match="'nobody-asked' is unknown or answered twice"):
        score.score_cell(tmp_path, prepared.prepared("two_hop", "16K"), "contains", {})
    assert not (tmp_path / "scores.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tasks.stages.prepare", "task", "--task", "tow_hop"],
            "--task: unknown name 'tow_hop'; did you mean 'two_hop'?",
        ),
        (["tasks.stages.prepare", "task", "--task", "niah_prose_s2"], "not a readable Parquet file"),
        (["tasks.stages.score", "--system", "bm52", "--task", "two_hop"], "--system: unknown name 'bm52'"),
        (["tasks.stages.samples", "--samples", "middle"], "--samples: unknown name 'middle'"),
        (
            ["tasks.stages.prepare", "corpus", "--corpus", "chains", "--profile", "sets"],
            "context 'own' is for corpora of a set",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(place, arguments, message) -> None:
    paths = Paths.of("mini", place / "results")
    paths.corpus("prose").parent.mkdir(parents=True, exist_ok=True)
    paths.corpus("prose").write_bytes(b"no parquet")
    (place / "configs" / "profiles" / "sets.yaml").write_text(yaml.safe_dump(SETS))
    options = ["--configs", str(place / "configs"), "--results", str(place / "results")]
    options += [] if "--profile" in arguments else ["--profile", "mini"]
    done = subprocess.run(
        [sys.executable, "-m", *arguments, *options], capture_output=True, text=True, cwd=DIRECTORY.parent, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(paths.root.rglob("*.tmp"))
