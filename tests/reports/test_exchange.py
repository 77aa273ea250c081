"""What other tools read of the results says the same as the results."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from msa_base.errors import UserError, run_command
from msa_base.records import Answer
from msa_base.tables import read_predictions, read_table, write_table
from reports.evidence import CellKey, Evidence
from reports.exchange import __main__ as exchange
from reports.exchange import inspect_log, lm_eval, trec
from reports.exchange.scored import Scored, scored_cells
from tests.reports.conftest import Tree, plant

SMALL = {"contexts": ["16K", "1M"], "tasks": {"scaling_facts": 32}, "systems": ["rag_bm25", "msa"]}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """msa at both contexts; rag_bm25 at one, out of memory at the other."""
    made = plant(tmp_path_factory.mktemp("exchange"), **SMALL)
    made.prepare("scaling_facts")
    for context in SMALL["contexts"]:
        made.cell("msa", "scaling_facts", context, 0.7)
    made.cell("rag_bm25", "scaling_facts", "16K", 0.5)
    made.run("rag_bm25", "scaling_facts", "1M", "out_of_memory")
    write_table("scores", [], made.paths.cell("rag_bm25", "scaling_facts", "1M", 0) / "scores.parquet")
    made.seal_scores("rag_bm25", "scaling_facts")
    return made


@pytest.fixture(scope="module")
def evidence(tree: Tree) -> Evidence:
    """What the tree holds."""
    return Evidence.read("toy", tree.root, tree.configs)


@pytest.fixture(scope="module")
def folder(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, written."""
    place = tmp_path_factory.mktemp("written") / "exchange"
    assert exchange.write(evidence, place) == 4
    return place


def scores(tree: Tree, system: str, context: str, metric: str) -> dict[str, float]:
    """A metric of a cell by question."""
    path = tree.paths.cell(system, "scaling_facts", context, 0) / "scores.parquet"
    return {row["question_id"]: row["value"] for row in read_table("scores", path) if row["metric"] == metric}


def columns(path: Path) -> list[list[str]]:
    """The lines of a TREC file, by column."""
    return [line.split() for line in path.read_text().splitlines()]


def test_a_trec_run_and_its_qrels_give_the_recall_that_was_scored(tree: Tree, folder: Path) -> None:
    gold = defaultdict(set)
    for question, zero, document, grade in columns(folder / "trec" / "scaling_facts_16K.qrels"):
        assert (zero, grade) == ("0", "1")
        gold[question].add(document)
    for stage in ("layer2", "layer3"):
        ranked = defaultdict(list)
        for question, q0, document, rank, score, tag in columns(
            folder / "trec" / "msa" / f"scaling_facts_16K_seed0.{stage}.run"
        ):
            assert (q0, tag) == ("Q0", "msa") and int(rank) == len(ranked[question]) + 1
            ranked[question].append((float(score), document))
        assert all(found == sorted(found, reverse=True) for found in ranked.values())
        recall = {
            name: len({document for _, document in ranked[name][:16]} & right) / len(right)
            for name, right in gold.items()
        }
        assert recall == scores(tree, "msa", "16K", f"recall@16/{stage}")
    cited = columns(folder / "trec" / "msa" / "scaling_facts_16K_seed0.cited.run")
    assert len(cited) == sum(scores(tree, "msa", "16K", "citation_recall").values())
    assert not list(folder.glob("trec/rag_bm25/*1M*"))


def test_runs_rank_a_document_once_and_ids_hold_no_space() -> None:
    answers = [Answer("a b%", "", [4, 4], {"layer2/round2": [5, 4, 5], "layer2": []}), Answer("c", "", [], {})]
    cell = Scored(CellKey("s", "t", "16K"), None, answers, {}, {}, {}, {})
    assert dict(trec.runs(cell)) == {
        "layer2-round2": ["a%20b%25 Q0 5 1 1 s\n", "a%20b%25 Q0 4 2 0.5 s\n"],
        "layer2": [],
        "cited": ["a%20b%25 Q0 4 1 1 s\n"],
    }


def test_qrels_hold_the_grades_of_people(tree: Tree, tmp_path: Path) -> None:
    paths = type(tree.paths)(tmp_path)
    grades = paths.prepared("scaling_facts", "16K") / "grades.parquet"
    write_table(
        "grades",
        [{"question_id": "q", "doc_id": 3, "grade": 2.0}, {"question_id": "q", "doc_id": 4, "grade": 0.0}],
        grades,
    )
    assert trec.qrels(paths, "scaling_facts", "16K") == ["q 0 3 2\n", "q 0 4 0\n"]
    write_table("grades", [{"question_id": "q", "doc_id": 3, "grade": 0.5}], grades)
    with pytest.raises(UserError, match=r"grades\.parquet: key 'grade' holds 0\.5"):
        trec.qrels(paths, "scaling_facts", "16K")


def test_a_log_of_inspect_holds_every_answer_and_score(tree: Tree, folder: Path) -> None:
    logs = {path.name: json.loads(path.read_text()) for path in (folder / "inspect_ai").glob("*.json")}
    assert len(logs) == 4 and all(name.count("_") == 3 for name in logs)
    (log,) = [log for name, log in logs.items() if "_scaling-facts-16K-seed0_msa_" in name]
    assert list(log)[:3] == ["version", "status", "eval"]  # headers are read as a stream
    assert (log["version"], log["status"], log["eval"]["model"]) == (2, "success", "msa-suite/msa")
    answers = read_predictions(tree.paths.cell("msa", "scaling_facts", "16K", 0) / "predictions.jsonl")
    assert [(s["id"], s["output"]["completion"], s["metadata"]["status"]) for s in log["samples"]] == [
        (answer.question_id, answer.text, answer.status) for answer in answers
    ]
    for metric in ("accuracy", "recall@16/layer2"):
        assert {s["id"]: s["scores"][metric]["value"] for s in log["samples"]} == scores(tree, "msa", "16K", metric)
    mean = next(score for score in log["results"]["scores"] if score["name"] == "accuracy")
    values = scores(tree, "msa", "16K", "accuracy").values()
    assert mean["metrics"]["mean"]["value"] == pytest.approx(sum(values) / 32)
    assert mean["metrics"]["ci95_low"]["value"] < sum(values) / 32 < mean["metrics"]["ci95_high"]["value"]
    (failed,) = [log for log in logs.values() if log["status"] == "error"]
    assert failed["error"]["message"].startswith("out_of_memory: ") and failed["samples"] == []


def test_a_missing_value_is_no_score_and_systems_of_equal_entries_are_told_apart(evidence: Evidence) -> None:
    cell = next(cell for cell in scored_cells(evidence) if cell.answers)
    name = cell.answers[0].question_id
    lost = Scored(**{**vars(cell), "scores": {**cell.scores, name: {"accuracy": 1.0, "judge": None}}})
    log = inspect_log.log(lost, evidence)
    assert set(log["samples"][0]["scores"]) == {"accuracy"}
    judged = next(score for score in log["results"]["scores"] if score["name"] == "judge")
    assert (judged["scored_samples"], judged["unscored_samples"], judged["metrics"]) == (0, 32, {})
    assert next(lm_eval.samples(lost))["judge"] is None
    twin = Scored(**{**vars(cell), "cell": cell.cell._replace(system="msa")})
    assert inspect_log.file_name(twin) != inspect_log.file_name(cell)


def test_samples_and_results_of_lm_eval_agree(tree: Tree, folder: Path) -> None:
    (path,) = (folder / "lm_eval" / "msa").glob("results_*.json")
    results = json.loads(path.read_text())
    assert set(results["results"]) == {"scaling_facts_16K_seed0", "scaling_facts_1M_seed0"}
    for name, found in results["results"].items():
        (file,) = (folder / "lm_eval" / "msa").glob(f"samples_{name}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert found["sample_len"] == len(rows) == results["n-samples"][name]["effective"] == 32
        for metric in rows[0]["metrics"]:
            assert found[f"{metric},none"] == pytest.approx(sum(row[metric] for row in rows) / 32)
            assert found[f"{metric}_stderr,none"] == "N/A"
        assert {row["doc"]["question_id"]: row["accuracy"] for row in rows} == scores(
            tree, "msa", name.split("_")[2], "accuracy"
        )
        hashes = "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)
        assert results["task_hashes"][name] == hashlib.sha256(hashes.encode()).hexdigest()
        assert rows[3]["target_hash"] == hashlib.sha256(rows[3]["target"].encode()).hexdigest()
    (path,) = (folder / "lm_eval" / "rag_bm25").glob("results_*.json")
    assert set(json.loads(path.read_text())["results"]) == {"scaling_facts_16K_seed0"}


def test_the_command_replaces_its_own_folder_alone(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def command(*further: str) -> int:
        places = ["--profile", "toy", "--results", str(tree.root), "--configs", str(tree.configs)]
        monkeypatch.setattr(sys, "argv", ["exchange", *places, *further])
        with pytest.raises(SystemExit) as ended:
            run_command(exchange.main)
        return ended.value.code

    old = tree.paths.root / "_exchange" / "old"
    old.parent.mkdir()
    old.write_text("")
    assert command() == 0 and not old.exists() and (old.parent / "trec").is_dir()
    assert "4 cells" in capsys.readouterr().out
    (tmp_path / "mine").write_text("")
    assert command("--output", str(tmp_path)) == 2 and (tmp_path / "mine").exists()
    assert "exists already" in capsys.readouterr().err


def test_nothing_scored_is_one_line(tmp_path: Path) -> None:
    empty = plant(tmp_path, **SMALL)
    with pytest.raises(UserError, match="holds no scores; run `make reproduce` first"):
        exchange.write(Evidence.read("toy", empty.root, empty.configs), tmp_path / "out")
    assert not (tmp_path / "out").exists()
