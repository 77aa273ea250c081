"""The page on full, partial and empty trees: what it holds, that it stands alone, and the one-screen text."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from msa_base.errors import UserError
from msa_base.records import Answer
from msa_base.seal import MadeFrom, value_digest
from msa_base.stage_records import Trial, TuningRecord
from reports import headline
from reports.build import FIGURES, build
from reports.evidence import CellKey, Evidence
from reports.expected import check, read_expected
from reports.figures import look
from reports.published.reference import read_reference
from reports.tables import costs
from reports.tables.causes import cause, diagnose, routed_share
from tests.evaluated import MACHINE

PAPER = "https://arxiv.org/abs/2603.23516"
TABLES = (
    "claims",
    "ledger",
    "effective_length",
    "by_memory",
    "scores",
    "scores_16K",
    "scores_1M",
    "comparisons",
    "interleave",
    "free_ids",
    "recall",
    "failures",
    "cost",
    "growth",
    "stages",
    "time",
    "provenance",
    "status",
)


def test_the_page_holds_every_figure_and_table(built) -> None:
    _, page, folder = built
    assert page.count('<figure class="figure"') == len(FIGURES)
    assert "not measured yet" not in page
    for name in TABLES:
        assert f'href="{name}.csv"' in page
        assert len(pd.read_csv(folder / f"{name}.csv"))


def test_shares_of_the_time_add_up_and_count_what_was_run(evidence) -> None:
    frame = costs.time(evidence).frame.set_index("system")
    assert frame["share"].sum() == pytest.approx(1.0)
    expected = sum(run.wall_s for cell, runs in evidence.runs.items() if cell.system == "msa" for run in runs)
    assert frame.loc["msa", "answering_s"] == expected and frame["share"].idxmax() == "msa"
    assert frame["served_requests"].sum() == 0 and frame["served_usd"].isna().all()


def test_a_search_is_shown_beside_the_setting_that_was_evaluated(evidence) -> None:
    rows = [
        Trial(params={"read_k": k}, correct=value, recall=0.5, seconds=1.0, status="ok")
        for k, value in ((1, 0.4), (2, 0.7), (4, 0.6))
    ]
    record = TuningRecord(
        made_from=MadeFrom(),
        threads=2,
        versions={},
        hardware=MACHINE,
        profile="toy",
        system="rag_bm25",
        split="tuning",
        questions=96,
        tokens=325_426,
        rows=[*rows, Trial(params={"read_k": 99}, seconds=0.1, status="timeout")],
        best={"read_k": 2},
        entry={"read_k": 1},
    )
    untried = record.model_copy(update={"system": "rag_dense", "entry": {"read_k": 3}})
    table = costs.tuning(replace(evidence, tuning={"rag_bm25": record, "rag_dense": untried}))
    (_, *found), (*_, own, settings, _, _) = table.rows
    assert found == [0.7, "read_k 2", 0.4, "read_k 1", 96, 325_426]
    assert own is settings is None and table.shown[1][3].text == "–"
    assert len(table.frame) == 8 and table.frame["correct"].isna().sum() == 2


def test_the_page_stands_alone(built) -> None:
    _, page, _ = built
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    near = ("data:,", "#", "../", "predictions.html", "tables.pdf", PAPER)
    assert links and all(link.startswith(near) or link.endswith(".csv") for link in links)
    loaded = re.findall(r'<(?:script|img|link|iframe|object)[^>]* (?:src|href)="([^"]*)"', page)
    assert loaded == ["data:,"] and "@import" not in page and not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_page_shows_results_verdicts_statuses_and_provenance(built) -> None:
    _, page, _ = built
    for expected in (
        "holds in miniature",
        "not measured",
        "unsupported context",
        "too long",
        "the system takes 16,384 tokens at most",
        "A processor",
        "torch 2.13.0",
        f"reader {'e' * 12}",
        value_digest({"system": "c" * 16})[:12],
        "64 questions in 4 heads",
        "arXiv 2603.23516",
        "Qwen3-4B-Instruct-2507",
    ):
        assert expected in page


def test_the_papers_numbers_stand_beside(built) -> None:
    _, page, _ = built
    for number in ("4.023", "3.669", "3.242", "3.76", "3.25", "169 GB", "22350"):
        assert number in page


def test_the_text_fits_one_screen(built) -> None:
    text, _, folder = built
    lines = text.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 160
    assert lines[-1] == f"Report: {folder / 'index.html'}"
    assert "60 unsupported context" not in text  # 10 tasks, 3 contexts
    assert "30 unsupported context: full_attention" in text
    assert "1 not measured: rag_bm25" in text


def test_the_same_tree_gives_the_same_page(grown, evidence, built) -> None:
    build(evidence)
    assert (grown.paths.report / "index.html").read_text() == built[1]


def test_an_empty_tree_gives_a_page_that_says_so(new_tree: Callable) -> None:
    tree = new_tree()
    text = build(tree.evidence())
    page = (tree.paths.report / "index.html").read_text()
    assert "<figure" not in page
    assert page.count(": not measured yet.") == len(FIGURES) + 1  # and the leaderboards
    assert "0 of 320 ok" in text


def test_a_partial_tree(new_tree: Callable) -> None:
    tree = new_tree()
    tree.prepare("niah_prose_s2")
    for context in ("16K", "32K"):
        tree.cell("msa", "niah_prose_s2", context, 0.9)
        tree.cell("rag_bm25", "niah_prose_s2", context, 0.7)
    text = build(tree.evidence())
    page = (tree.paths.report / "index.html").read_text()
    assert "4 of 320 ok" in text
    assert page.count("<figure") == 3  # the maps by task and by depth, and the time of the cells
    assert "Mean of the eight needle tasks" in page


def test_a_profile_of_one_task_and_one_context(new_tree: Callable) -> None:
    tree = new_tree(
        tasks={"scaling_facts": 32},
        contexts=["16K"],
        systems=["msa", "rag_bm25"],
        latency={"task": "scaling_facts", "questions": 2},
    )
    tree.grow()
    assert "MSA, Scaling: single-hop facts at 16K" in build(tree.evidence())


def test_tasks_without_a_headline_of_their_own_are_listed(new_tree: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = new_tree(tasks={"scaling_facts": 32}, contexts=["16K"], systems=["msa", "rag_bm25"])
    tree.grow()
    assert "Scores at the largest memory" not in build(tree.evidence())
    monkeypatch.setattr(headline, "HEADLINED", ())
    lines = [line.split() for line in build(tree.evidence()).splitlines() if " contains " in line]
    assert [line[line.index("16K") - 1] for line in lines] == ["msa", "rag_bm25"]
    value, low, high, n = (float(lines[0][lines[0].index("contains") + place]) for place in (1, 2, 3, 4))
    assert 0 <= low <= value <= high <= 1 and n == 32


def test_a_profile_without_msa(new_tree: Callable) -> None:
    tree = new_tree(
        tasks={"scaling_facts": 16, "two_hop": 16}, contexts=["16K", "32K"], systems=["rag_bm25", "rag_dense"]
    )
    tree.grow()
    assert "msa is not in this profile" in build(tree.evidence())


def test_without_a_summary_the_mend_is_named(new_tree: Callable) -> None:
    tree = new_tree()
    with pytest.raises(UserError, match=r"summary\.parquet"):
        build(Evidence.read("toy", tree.root, tree.configs))


@pytest.mark.usefixtures("evidence")
def test_the_command_prints_and_help_has_an_example(grown) -> None:
    arguments = ["--profile", "toy", "--results", str(grown.root), "--configs", str(grown.configs), "--print"]
    done = subprocess.run([sys.executable, "-m", "reports.build", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Published claims" in done.stdout
    unknown = subprocess.run(
        [sys.executable, "-m", "reports.build", "--profile", "toyy", *arguments[2:]], capture_output=True, text=True
    )
    assert unknown.returncode == 2 and "toyy.yaml" in unknown.stderr


def test_causes_of_wrong_answers() -> None:
    routed, gold = {"layer2": [5], "round2/layer3": [7, 1]}, [5, 7]
    assert cause(Answer("q", "", [5, 7], routed, status="unknown_id"), gold) == "malformed"
    assert cause(Answer("q", "", [], {"layer2": [5]}), gold) == "retrieval"
    assert cause(Answer("q", "", [5], routed), gold) == "citation"
    assert cause(Answer("q", "", [7, 5, 1], routed), gold) == "reading"


def test_diagnosis_accounts_for_every_answer(evidence) -> None:
    cell = CellKey("msa", "niah_prose_mk3", "16K")
    found = diagnose(evidence, cell)
    assert found.right + found.causes.total() == found.n == 24
    assert found.main_cause == "retrieval"
    assert found.statuses == {"malformed_retrieval": 1} and found.causes["malformed"] == 1
    assert diagnose(evidence, CellKey("rag_bm25", "two_hop", "1M")) is None
    assert 0 < routed_share(evidence, cell).value < 1


def test_expectations_of_tiny_name_what_exists() -> None:
    from msa_base.load import load
    from msa_base.paths import DIRECTORY

    experiment = load("tiny", DIRECTORY)
    expectations = read_expected()["tiny"]
    assert expectations
    for expectation in expectations:
        assert expectation.system in experiment.profile.systems
        assert expectation.task in (*experiment.profile.tasks, "niah_prose_mean")
        assert expectation.context in experiment.profile.contexts


def test_expectations_are_met_missed_or_open(evidence, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "expected.yaml"
    path.write_text(
        "toy:\n"
        "- {title: a, system: oracle, task: scaling_facts, context: 16K, at_least: 0.5}\n"
        "- {title: b, system: closed_book, task: scaling_facts, context: 16K, at_least: 0.5}\n"
        "- {title: c, system: rag_bm25, task: two_hop, context: 1M, at_least: 0.5}\n"
        "- {title: d, system: msa, task: two_hop, context: 1M, statistic: ratio,"
        " against: {system: msa_no_interleave, context: 1M}, low: true, at_least: 1.1}\n"
    )
    monkeypatch.setattr("reports.expected.EXPECTED", path)
    assert [outcome.verdict for outcome in check(evidence)] == ["met", "missed", "not measured", "met"]


def test_an_expectation_needs_one_bound(tmp_path: Path) -> None:
    path = tmp_path / "expected.yaml"
    path.write_text("toy:\n- {title: a, system: msa, task: two_hop, context: 16K}\n")
    with pytest.raises(UserError, match=r"toy\[0\]"):
        read_expected(path)


def test_labels_never_collide() -> None:
    heights = look.spread([0.1, 0.5, 0.5, 0.51, 0.9], 0.06)
    assert np.diff(heights).min() >= 0.06 - 1e-9
    assert heights[0] == pytest.approx(0.1) and heights[-1] == pytest.approx(0.9)


def test_every_system_has_a_look_of_its_own(evidence) -> None:
    looks = look.looks(evidence, read_reference().played_by["ours"])
    assert len({(it.colour, it.dash, it.marker) for it in looks.values()}) == len(looks)
