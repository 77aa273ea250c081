"""Two results directories side by side: what is paired, what is not, and what is said of it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from msa_base.errors import UserError, run_command
from msa_base.records import Answer
from msa_base.seal import MadeFrom
from msa_base.tables import read_table, write_predictions, write_table
from reports import compare
from reports.compare import TwoRuns
from reports.statistics import difference, mcnemar
from tests.evaluated import write_run
from tests.reports.conftest import Tree, plant

SMALL = {"contexts": ["16K", "32K"], "tasks": {"scaling_facts": 64}, "systems": ["rag_bm25", "msa"]}


@pytest.fixture
def two(tmp_path: Path) -> Callable[..., tuple[Tree, Tree]]:
    """Makes two trees of rag_bm25 at both contexts, with the chances given for 16K."""

    def make(first: float = 0.5, second: float = 0.5, **changes) -> tuple[Tree, Tree]:
        one = plant(tmp_path / "one", **{**SMALL, **changes})
        trees = (one, Tree(tmp_path / "two" / "results", one.configs))
        for tree, chance in zip(trees, (first, second), strict=True):
            tree.prepare("scaling_facts")
            tree.cell("rag_bm25", "scaling_facts", "16K", chance)
            tree.cell("rag_bm25", "scaling_facts", "32K", 0.4)
        return trees

    return make


def read(trees: tuple[Tree, Tree]) -> TwoRuns:
    """Both trees, compared."""
    return TwoRuns.read(trees[0].root, trees[1].root, "toy", trees[0].configs)


def command(monkeypatch: pytest.MonkeyPatch, trees: tuple[Tree, Tree], *further: str) -> int:
    """The exit code of the command."""
    places = [str(trees[0].root), str(trees[1].root), "--profile", "toy", "--configs", str(trees[0].configs)]
    monkeypatch.setattr(sys, "argv", ["compare", *places, *further])
    with pytest.raises(SystemExit) as ended:
        run_command(compare.main)
    return ended.value.code


def reanswer(tree: Tree, context: str, change: Callable[[Answer], Answer | None], seed: int = 0, **fields) -> None:
    """Change the answers of a cell; None drops one."""
    cell = tree.paths.cell("rag_bm25", "scaling_facts", context, seed)
    answers = compare.read_predictions(cell / "predictions.jsonl")
    write_predictions(filter(None, map(change, answers)), cell / "predictions.jsonl")
    write_run(cell, "ok", task="scaling_facts", context=context, seed=seed, **fields)
    tree.seal_scores("rag_bm25", "scaling_facts")


def test_a_change_is_paired_by_question_and_counts_who_is_right_alone(two) -> None:
    trees = two(0.4, 0.8)
    found = read(trees)
    sides = [
        {
            row["question_id"]: row["value"]
            for row in read_table("scores", tree.paths.cell("rag_bm25", "scaling_facts", "16K", 0) / "scores.parquet")
            if row["metric"] == "accuracy"
        }
        for tree in trees
    ]
    table = np.array([[sides[1][name], sides[0][name]] for name in sorted(sides[0])])
    heads = [f"head{int(name[-4:]) % 4}" for name in sorted(sides[0])]
    expected = difference(table, heads)
    (row, same) = found.cells.rows
    assert row[:4] == ("scaling_facts", "rag_bm25", "16K", 64)
    assert row[4:6] == (table[:, 1].mean(), table[:, 0].mean()) and row[5] - row[4] > 0.2
    assert (row[6].value, row[6].low, row[6].high) == pytest.approx(
        (100 * expected.value, 100 * expected.low, 100 * expected.high)
    )
    assert row[7:10] == (mcnemar(table), 0, int(table[:, 0].sum() - table[:, 1].sum()))
    assert same[6].value == 0 and same[6].low < 0 < same[6].high and same[10] == 0
    assert found.means.rows[0][2:4] == (1, 64) and found.means.rows[0][6].value == pytest.approx(row[6].value)
    assert {row[3] for row in found.metrics.rows} == {"recall@16/bm25"}


def test_times_do_not_count_and_words_do(two) -> None:
    trees = two()
    reanswer(trees[1], "16K", lambda answer: Answer(**{**vars(answer), "total_s": 99.0}))
    assert read(trees).identical
    reanswer(trees[1], "32K", lambda answer: Answer(**{**vars(answer), "text": answer.text + "!"}))
    found = read(trees)
    assert not found.identical
    assert [len(pair.differing) for pair in found.pairs] == [0, 64]
    assert found.outcome == "2 cells have answers on both sides, 1 of 2 cells differ"


def test_what_only_one_side_has_is_said(two) -> None:
    trees = two()
    trees[1].cell("msa", "scaling_facts", "16K", 0.9)
    trees[0].run("msa", "scaling_facts", "32K", "out_of_memory")
    trees[1].run("msa", "scaling_facts", "32K", "out_of_memory")
    reanswer(trees[1], "32K", lambda answer: None if answer.question_id.endswith("3") else answer)
    found = read(trees)
    notes = {(row[1], row[2]): (row[3], row[-1]) for row in found.cells.rows}
    assert notes["msa", "16K"] == (0, "not measured / ok")
    assert notes["msa", "32K"] == (0, "out of memory")
    assert notes["rag_bm25", "32K"][1] == "7 answers of the first alone, 0 of the second"
    differ = [pair.cell.system for pair in found.pairs if not pair.identical]
    assert differ == ["rag_bm25", "msa"]


def test_other_questions_under_the_same_ids_are_not_paired(two) -> None:
    trees = two(0.4, 0.8)
    prepared = trees[1].paths.prepared("scaling_facts", "16K")
    for table, change in (("questions", {"text": "??"}), ("gold", {"answers": ["y"]})):
        rows = read_table(table, prepared / f"{table}.parquet")
        at = 0 if table == "questions" else 1
        write_table(
            table, [{**row, **(change if i == at else {})} for i, row in enumerate(rows)], prepared / f"{table}.parquet"
        )
    row = read(trees).cells.rows[0]
    assert row[3] == 62 and row[-1] == "2 questions are others under the same id"


def test_without_the_prepared_task_its_digest_says_whether_questions_are_the_same(two) -> None:
    trees = two()
    for tree, digest in zip(trees, ("a" * 64, "a" * 64), strict=True):
        for context in SMALL["contexts"]:
            data = {f"_data/scaling_facts/{context}/questions.parquet": digest}
            reanswer(tree, context, lambda answer: answer, made_from=MadeFrom(data=data))
            shutil.rmtree(tree.paths.prepared("scaling_facts", context))
    assert [row[3] for row in read(trees).cells.rows] == [64, 64]
    reanswer(trees[1], "16K", lambda answer: answer, made_from=MadeFrom(data={}))
    assert [row[3] for row in read(trees).cells.rows] == [0, 64]


def test_what_the_sides_were_made_from_is_set_side_by_side(two) -> None:
    trees = two()
    for tree, code, digest, fields in (
        (trees[0], "0", "e", {}),
        (trees[1], "1", "f", {"threads": 4, "versions": {"python": "3.11.9", "torch": "2.14.0"}}),
    ):
        data = {"_models/reader": digest * 64, "_data/scaling_facts/16K/questions.parquet": digest * 64, "seed": "0"}
        made = MadeFrom(code={"baselines.bm25": code, "msa_base.records": "2"}, config={"system": "3"}, data=data)
        reanswer(tree, "16K", lambda answer: answer, made_from=made, **fields)
    rows = {(row[0], row[3]): row[1:3] for row in read(trees).provenance.rows}
    assert rows["code", "baselines.bm25"] == (1, "rag_bm25")
    assert rows["data", "_data/scaling_facts/16K/questions.parquet, _models/reader"] == (1, "rag_bm25")
    (machine,) = [names for part, names in rows if part == "machine"]
    assert "threads: 2 / 4" in machine and "version of torch: 2.13.0 / 2.14.0" in machine
    assert not [names for part, names in rows if part == "config"]


def test_seeds_are_compared_one_by_one_and_scored_together(two) -> None:
    trees = two(seeds=[0, 1])
    for tree in trees:
        for context in SMALL["contexts"]:
            tree.cell("rag_bm25", "scaling_facts", context, 0.6, seed=1)
    reanswer(trees[1], "16K", lambda answer: Answer(**{**vars(answer), "cited_doc_ids": [1]}), seed=1)
    found = read(trees)
    assert [row[3] for row in found.cells.rows] == [64, 64] and found.cells.rows[0][10] == 64
    assert len(found.pairs[0].answers[0]) == 128


def test_the_page_stands_alone_and_says_what_models_said_as_text(two, tmp_path: Path, monkeypatch) -> None:
    trees = two()
    bad = "<script>alert(1)</script>"
    reanswer(trees[1], "16K", lambda answer: Answer(**{**vars(answer), "text": bad * 40}))
    assert command(monkeypatch, trees, "--output", str(tmp_path / "out")) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert bad not in page and "&lt;script&gt;" in page and not re.search(r'(src|href)="(https?:)?//', page)
    assert "64 questions, 40 shown" in page
    questions = compare.pd.read_csv(tmp_path / "out" / "questions.csv")
    assert (
        len(questions) == 128
        and questions.differs.sum() == 64
        and set(questions.second[questions.differs]) == {bad * 40}
    )
    assert "Cells that differ" in (tmp_path / "out" / "summary.txt").read_text()


def test_the_check_that_a_run_repeats(two, monkeypatch, capsys, tmp_path: Path) -> None:
    trees = two()
    assert command(monkeypatch, trees, "--identical") == 0
    assert "0 of 2 cells differ" in capsys.readouterr().out
    reanswer(trees[1], "16K", lambda answer: Answer(**{**vars(answer), "status": "malformed_retrieval"}))
    assert command(monkeypatch, trees, "--identical") == 1
    empty = Tree(tmp_path / "three" / "results", trees[0].configs)
    (empty.root / "toy").mkdir(parents=True)
    assert command(monkeypatch, (empty, empty), "--identical") == 1  # nothing to compare
    shutil.rmtree(empty.root)
    assert command(monkeypatch, (trees[0], empty)) == 2
    assert f"error: {empty.root}: has no results of profile 'toy'" in capsys.readouterr().err


def test_cells_outside_the_profile_are_named(two) -> None:
    trees = two()
    shutil.copytree(trees[1].paths.root / "rag_bm25", trees[1].paths.root / "other")
    found = read(trees)
    assert found.outside == [f"other/scaling_facts/{context}/seed0" for context in SMALL["contexts"]]
    assert found.outcome.endswith("; 2 cells are outside the profile") and found.outside[0] in found.page()


def test_an_edited_file_is_named(two) -> None:
    trees = two()
    path = trees[1].paths.cell("rag_bm25", "scaling_facts", "16K", 0) / "predictions.jsonl"
    path.write_text(path.read_text().replace("x", "y"))
    with pytest.raises(UserError, match=r"two/results/toy/rag_bm25.*predictions\.jsonl: was changed"):
        read(trees)
