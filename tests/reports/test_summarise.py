"""The summary of hand-made trees: values, units, failures, and rows for what has no value."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product

import pytest

from msa_base.load import load
from msa_base.seal import MadeFrom
from msa_base.stage_records import Audit, IndexRecord, RunRecord
from msa_base.tables import read_table, write_table
from reports.evidence import NEEDLE_MEAN, SummaryRow
from reports.summarise import summarise, unit
from reports.tables import cells, costs
from tests.evaluated import MACHINE


def rows_of(tree) -> dict[tuple[str, str, str, str], SummaryRow]:
    """The summary by (system, task, context, metric)."""
    return {(row.system, row.task, row.context, row.metric): row for row in summarise(tree.evidence())}


@pytest.fixture(scope="module")
def rows(evidence) -> dict:
    """The full tree's summary."""
    return {(row.system, row.task, row.context, row.metric): row for row in summarise(evidence)}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", "share"),
        ("recall@16/layer2", "share"),
        ("citation_recall", "share"),
        ("wall_s", "s"),
        ("peak_host_bytes", "bytes"),
        ("latency/total_s/median", "s"),
        ("latency/stage_s/route", "s"),
        ("latency/index_bytes", "bytes"),
        ("output_tokens", "tokens"),
        ("judge", "points"),
    ],
)
def test_units(metric: str, expected: str) -> None:
    assert unit(metric) == expected


def test_every_cell_has_a_row(evidence, rows) -> None:
    assert evidence.cells() and all((*cell, "accuracy") in rows for cell in evidence.cells())


def test_a_measured_cell(new_tree: Callable) -> None:
    tree = new_tree()
    tree.cell("msa", "two_hop", "16K", 0.75)
    row = rows_of(tree)["msa", "two_hop", "16K", "accuracy"]
    scores = read_table("scores", tree.paths.cell("msa", "two_hop", "16K", 0) / "scores.parquet")
    values = [score["value"] for score in scores if score["metric"] == "accuracy"]
    assert row.value == pytest.approx(sum(values) / len(values))
    assert row.low < row.value < row.high
    assert (row.n, row.failures, row.status, row.unit, row.context_tokens) == (
        48,
        1,
        "ok",
        "share",
        16384,
    )


def test_an_expected_failure_is_null_with_its_questions(rows) -> None:
    row = rows["full_attention", "two_hop", "1M", "accuracy"]
    cap = load("tiny").systems["full_attention"].max_questions
    assert (row.status, row.n, row.failures) == ("unsupported_context", 0, cap)
    assert row.value is row.low is row.high is None


def test_a_cell_that_has_not_run_is_null_without_a_count(rows) -> None:
    row = rows["rag_bm25", "two_hop", "1M", "accuracy"]
    assert (row.status, row.n, row.failures, row.value) == ("not measured", 0, None, None)


def test_answers_without_scores_are_not_measured(new_tree: Callable) -> None:
    tree = new_tree()
    tree.cell("msa", "two_hop", "16K", 0.9)
    (tree.paths.task("msa", "two_hop") / "scores.json").unlink()
    assert rows_of(tree)["msa", "two_hop", "16K", "accuracy"].status == "not measured"


def test_missing_values_are_counted_and_leave_the_mean(new_tree: Callable) -> None:
    tree = new_tree()
    tree.cell("msa", "two_hop", "16K", 1.0)
    path = tree.paths.cell("msa", "two_hop", "16K", 0) / "scores.parquet"
    rows = read_table("scores", path)
    lost = next(row for row in rows if row["metric"] == "citation_recall")
    lost["value"] = None
    write_table("scores", rows, path)
    tree.seal_scores("msa", "two_hop")
    row = rows_of(tree)["msa", "two_hop", "16K", "citation_recall"]
    assert (row.n, row.failures, row.value) == (47, 1, 1.0)


def test_seeds_are_pooled_by_question(new_tree: Callable) -> None:
    tree = new_tree(seeds=[0, 1])
    tree.cell("msa", "two_hop", "16K", 0.7, seed=0)
    assert rows_of(tree)["msa", "two_hop", "16K", "accuracy"].status == "not measured"
    tree.cell("msa", "two_hop", "16K", 0.7, seed=1)
    row = rows_of(tree)["msa", "two_hop", "16K", "accuracy"]
    assert (row.n, row.status) == (48, "ok")


def test_the_needle_mean(evidence, rows) -> None:
    needles = evidence.needle_tasks
    mean = rows["msa", NEEDLE_MEAN, "1M", "accuracy"]
    parts = [rows["msa", task, "1M", "accuracy"] for task in needles]
    assert mean.value == pytest.approx(sum(row.value for row in parts) / 8)
    assert mean.n == sum(row.n for row in parts)
    assert mean.failures == sum(row.failures for row in parts)
    widths = [row.high - row.low for row in parts]
    assert mean.high - mean.low < min(widths)


def test_the_needle_mean_needs_all_eight(rows, new_tree: Callable) -> None:
    broken = rows["rag_dense", NEEDLE_MEAN, "1M", "accuracy"]
    assert (broken.status, broken.value) == ("out_of_memory", None)
    fewer = new_tree(tasks={"niah_prose_s1": 8, "scaling_facts": 8})
    assert not any(key[1] == NEEDLE_MEAN for key in rows_of(fewer))


def test_latency_and_run_costs(rows) -> None:
    total = rows["msa", "scaling_facts", "16K", "latency/total_s/median"]
    assert (total.value, total.unit, total.n, total.low) == (pytest.approx(0.02), "s", 4, None)
    assert rows["full_attention", "scaling_facts", "1M", "latency/total_s/median"].status == "unsupported_context"
    assert rows["msa", "two_hop", "16K", "wall_s"].value == 42.0


def command(tree, *extra: str) -> subprocess.CompletedProcess:
    """Run a report command as a user does."""
    arguments = ["--profile", "toy", "--results", str(tree.root), "--configs", str(tree.configs)]
    return subprocess.run([sys.executable, "-m", *extra[:1], *arguments, *extra[1:]], capture_output=True, text=True)


def test_the_command_writes_the_table(new_tree: Callable) -> None:
    tree = new_tree()
    tree.cell("msa", "two_hop", "16K", 0.9)
    done = command(tree, "reports.summarise")
    assert done.returncode == 0, done.stderr
    assert read_table("summary", tree.paths.summary)


def test_a_broken_file_is_one_message_and_exit_2(new_tree: Callable) -> None:
    tree = new_tree()
    tree.cell("msa", "two_hop", "16K", 0.9)
    scores = tree.paths.cell("msa", "two_hop", "16K", 0) / "scores.parquet"
    scores.write_bytes(b"PAR1 no")
    done = command(tree, "reports.summarise")
    assert (done.returncode, done.stdout) == (2, "")
    assert str(scores) in done.stderr and done.stderr.count("\n") == 1
    assert not tree.paths.summary.exists()


def test_a_timeout_is_kept_as_it_is(new_tree: Callable) -> None:
    tree = new_tree()
    tree.run("msa", "two_hop", "16K", "timeout")
    row = rows_of(tree)["msa", "two_hop", "16K", "accuracy"]
    assert (row.status, row.failures) == ("timeout", 48)


def test_a_cell_whose_predictions_were_cut_is_refused(new_tree: Callable) -> None:
    tree = new_tree()
    tree.cell("msa", "two_hop", "16K", 0.9)
    predictions = tree.paths.cell("msa", "two_hop", "16K", 0) / "predictions.jsonl"
    predictions.write_text("".join(predictions.read_text().splitlines(keepends=True)[:3]))
    done = command(tree, "reports.summarise")
    assert done.returncode == 2 and str(predictions) in done.stderr and not tree.paths.summary.exists()


def test_what_replies_lost_is_shown_by_cell_and_in_all(new_tree: Callable) -> None:
    tree = new_tree(tasks={"scaling_facts": 16}, contexts=["16K"], systems=["msa"])
    tree.cell("msa", "scaling_facts", "16K", 0.5)
    path = tree.paths.cell("msa", "scaling_facts", "16K", 0) / "run.json"
    usage = {
        "reader": {"requests": 3, "cost_usd": None, "lost": {"empty_reply": 2}, "repaired": {"thinking_removed": 1}},
        "store": {"lost": {"no_json_list": 1}, "repaired": {}},
    }
    audit = Audit(checked=1, problems={})
    RunRecord.open(path).model_copy(update={"usage": usage, "audit": audit}).write(path)
    evidence = tree.evidence()
    table = cells.statuses(evidence)
    row = dict(zip([column.name for column in table.columns], table.rows[0], strict=True))
    assert row["replies_lost"] == "2 empty reply (reader); 1 no json list (store)"
    assert row["replies_repaired"] == "1 thinking removed (reader)"
    assert "lost of replies: 2 empty reply (reader)" in cells.prompts(evidence)
    (spent,) = costs.time(evidence).rows
    assert spent[4:] == (3, None)  # requests and dollars are those of served models alone


def test_what_was_lost_and_paid_while_an_index_was_built_is_shown_with_the_cells_that_search_it(
    new_tree: Callable,
) -> None:
    tree = new_tree(tasks={"scaling_facts": 16}, contexts=["16K", "64K"], systems=["rag_dense", "rag_bm25"])
    for system, context in product(["rag_dense", "rag_bm25"], ["16K", "64K"]):
        tree.cell(system, "scaling_facts", context, 0.5)
    corpus, index = tree.experiment.tasks["scaling_facts"].corpus, tree.experiment.systems["rag_dense"].index
    usage = {"embedder": {"requests": 7, "cost_usd": 0.5, "lost": {"read_less": 3}, "repaired": {}}}
    IndexRecord(
        made_from=MadeFrom(), status="ok", index=index, corpus=corpus, kind="dense", build_s=2.0, usage=usage,
        threads=1, versions={}, hardware=MACHINE,
    ).write(tree.paths.index(index, corpus) / "index.json")  # fmt: skip
    evidence = tree.evidence()
    table = cells.statuses(evidence)
    names = [column.name for column in table.columns]
    lost = {row[0]: dict(zip(names, row, strict=True))["replies_lost"] for row in table.rows}
    assert lost == {"rag_dense": f"3 read less (embedder, {index})", "rag_bm25": ""}
    spent = {row[0]: row[3:] for row in costs.time(evidence).rows}
    assert spent["rag_dense"] == (2.0, 7, 0.5) and spent["rag_bm25"] == (None, 0, None)
    path = tree.paths.cell("rag_bm25", "scaling_facts", "16K", 0) / "run.json"
    RunRecord.open(path).model_copy(update={"audit": Audit(checked=1, problems={})}).write(path)
    said = cells.prompts(tree.evidence())
    assert f"lost of replies: 3 read less (embedder, {index})" in said  # once, however many cells search it
