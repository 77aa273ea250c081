"""What the report says of judges, floors and prompts: agreement by hand, failures apart, cells at their floor."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from msa_base.seal import MadeFrom, sealed
from msa_base.stage_records import Audit, Floor, JudgedRecord, RunRecord, ViewRecord
from msa_base.tables import read_table, write_lines, write_table
from reports.build import build
from reports.statistics import quadratic_kappa, rank_correlation
from tests.reports.conftest import Tree

CHANGES = {
    "contexts": ["16K"],
    "tasks": {"scaling_facts": 40, "edit_dated": 40},
    "systems": ["oracle", "rag_bm25"],
    "judges": ["gemini_flash", "qwen3_local"],
}


def test_quadratic_kappa_by_hand() -> None:
    # points 0, 1, 2, 3 against 0, 2, 2, 3: E d^2 = 1/4; by chance (0+1+4+9)/4 + (0+4+4+9)/4 - 2 * 6/4 * 7/4 = 5/2
    found = quadratic_kappa(np.array([[0, 0], [1, 2], [2, 2], [3, 3]]))
    assert found.value == pytest.approx(1 - 0.25 / 2.5) and found.low <= found.value <= found.high and found.n == 4
    assert quadratic_kappa(np.array([[0, 5], [5, 0]] * 5)).value == -1
    assert quadratic_kappa(np.array([[1, 1], [4, 4], [5, 5]])).value == 1
    assert math.isnan(quadratic_kappa(np.array([[3, 3], [3, 3]])).value)


def test_rank_correlation_with_ties_by_hand() -> None:
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4
    expected = np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1]
    assert rank_correlation(np.array([[0, 0.1], [2, 0.2], [2, 0.3], [5, 1.0]])).value == pytest.approx(expected)
    assert math.isnan(rank_correlation(np.array([[3, 0.1], [3, 0.2]])).value)


@pytest.fixture
def judged(new_tree: Callable[..., Tree]) -> Tree:
    """Two systems at two tasks; the second judge is one point stricter and failed twice on each cell."""
    tree = new_tree(**CHANGES)
    for task in ("scaling_facts", "edit_dated"):
        tree.prepare(task)
        for system, chance in (("oracle", 0.9), ("rag_bm25", 0.3)):
            tree.cell(system, task, "16K", chance)
            path = tree.paths.cell(system, task, "16K", 0) / "scores.parquet"
            rows = read_table("scores", path)
            for place, row in enumerate([row for row in rows if row["metric"] == "accuracy"]):
                first = 4 + place % 2 if row["value"] else place % 2
                second = None if place < 2 else max(0, first - 1)
                for metric, value in (("judge", first), ("judge/qwen3_local", second), ("f1", row["value"])):
                    rows.append({**row, "metric": metric, "value": value})
            write_table("scores", rows, path)
            tree.seal_scores(system, task)
    seal = tree.paths.probes("edit_dated")
    given = {"gemini_flash": [5, 0, 0, 0, 0, 0, 0, 0], "qwen3_local": [5, 5, 0, 0, 0, 0, 0, None]}
    rows = [{"judge": judge, "probe": "wrong", "value": value} for judge, values in given.items() for value in values]
    write_lines(rows, seal.with_name("probes.jsonl"))
    usage = {"requests": 8, "kept": 0, "retries": 0, "input_tokens": 80, "output_tokens": 8}
    used = {"gemini_flash": usage | {"cost_usd": 0.5}, "qwen3_local": usage | {"cost_usd": None}}
    JudgedRecord(made_from=MadeFrom(), files=sealed(seal.parent, ["probes.jsonl"]), usage=used).write(seal)
    folder = tree.paths.prepared("edit_dated", "16K")
    floor = Floor(value=1 / 3, of="any one of the reports")
    view = ViewRecord(made_from=MadeFrom(), corpus="prose", base_documents=9, context_tokens=16384, floor=floor)
    view.write(folder / "view.json")
    return tree


def test_the_report_sets_judges_beside_each_other_and_f1(judged) -> None:
    build(judged.evidence())
    page = (judged.paths.report / "index.html").read_text()
    agreement = pd.read_csv(judged.paths.report / "agreement.csv").set_index("between")
    assert list(agreement["n"]) == [160, 152, 152] and list(agreement["failed"]) == [0, 8, 8]
    pair = agreement.loc["gemini_flash and qwen3_local"]
    assert pair["statistic"] == "quadratic weighted kappa" and 0.7 < pair["value"] < 1 and pair["low"] < pair["value"]
    assert agreement.loc["gemini_flash and F1"]["value"] > 0.8
    points = pd.read_csv(judged.paths.report / "judgments.csv").set_index(["system", "task", "metric"])
    strict = points.loc["oracle", "edit_dated", "judge/qwen3_local"]
    assert strict["n"] == 38 and strict["failures"] >= 2 and strict["unit"] == "points" and strict["high"] <= 5
    probes = pd.read_csv(judged.paths.report / "probes.csv").set_index(["judge", "sort"])
    strict = probes.loc["qwen3_local", "wrong"]
    assert strict["n"] == 7 and strict["failed"] == 1 and strict["passed"] == pytest.approx(2 / 7)
    assert 0 < strict["passed_low"] < 2 / 7 < strict["passed_high"] < 1 and strict["points"] == pytest.approx(10 / 7)
    cost = pd.read_csv(judged.paths.report / "judging_cost.csv").set_index("judge")
    assert cost.loc["gemini_flash"]["requests"] == 8 and cost.loc["gemini_flash"]["cost_usd"] == pytest.approx(0.5)
    assert pd.isna(cost.loc["qwen3_local"]["cost_usd"])  # its entry names no price
    assert "Agreement of the judges" in page and "judge/qwen3_local" in page and "qwen3_local and F1" in page


def test_a_score_that_cannot_be_told_from_its_floor_is_marked(judged) -> None:
    build(judged.evidence())
    table = pd.read_csv(judged.paths.report / "scenarios.csv").set_index(["task", "system"])
    assert set(table.index.get_level_values(0)) == {"edit_dated"}  # the other task names no floor
    assert table.loc["edit_dated", "rag_bm25"]["stands"] == "at the floor"
    assert pd.isna(table.loc["edit_dated", "oracle"]["stands"])
    assert table.loc["edit_dated", "oracle"]["floor"] == pytest.approx(1 / 3)


def test_without_judges_and_floors_there_are_no_such_tables(evidence) -> None:
    build(evidence)
    page = (evidence.paths.report / "index.html").read_text()
    assert "Agreement of the judges" not in page and "beside their floors" not in page
    assert not (evidence.paths.report / "agreement.csv").exists()


def test_problems_of_prompts_reach_the_page_and_the_one_screen_text(judged) -> None:
    for system, problems, left_out in (("oracle", {}, 0), ("rag_bm25", {"document not whole": 3}, 2)):
        path = judged.paths.cell(system, "edit_dated", "16K", 0) / "run.json"
        audit = Audit(checked=4, problems=problems)
        changes = {"truncated": 1, "left_out": left_out, "audit": audit}
        RunRecord.open(path).model_copy(update=changes).write(path)
    text = build(judged.evidence())
    said = ["8 prompts checked, 3 problems", "3 document not whole", "2 answers cut at their budget"]
    said.append("2 questions with chosen documents left out")
    assert [line.strip() for line in text.splitlines() if line.strip() in said] == said
    assert "; ".join(said) in (judged.paths.report / "index.html").read_text()
    status = pd.read_csv(judged.paths.report / "status.csv").set_index(["system", "task"])
    assert (
        status.loc["rag_bm25", "edit_dated"]["prompt_problems"] == 3
        and status.loc["rag_bm25", "edit_dated"]["left_out"] == 2
    )
