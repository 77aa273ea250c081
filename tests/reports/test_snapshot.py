"""Snapshots: what they hold, that equal results give equal bytes, and what is never overwritten."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from msa_base.errors import UserError
from reports.build import FIGURES
from reports.evidence import CellKey, Evidence
from reports.figures import look
from reports.snapshot import write
from tests.reports.conftest import plant


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A run of three systems at two tasks, one cell of it still open."""
    systems = ["rag_bm25", "msa", "msa_no_interleave"]
    tasks = {"scaling_facts": 16, "two_hop": 16}
    tree = plant(tmp_path_factory.mktemp("small"), tasks=tasks, contexts=["16K", "1M"], systems=systems)
    tree.grow()
    return tree.evidence()


@pytest.fixture(scope="module")
def snapshot(small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its snapshot."""
    return write(small, "mine", tmp_path_factory.mktemp("reports"))


def test_a_snapshot_is_small_text_and_the_same_results_give_the_same_bytes(small, snapshot: Path) -> None:
    first = content(snapshot)
    assert snapshot.name == "mine" and {"README.md", "RESULTS.md", "summary.txt", "scores.csv"} <= set(first)
    assert {f"{name}.svg" for name in FIGURES} - set(first) == {
        "needles.svg",
        "needle_depths.svg",
        "needle_subtasks.svg",
    }
    assert all(len(value) < 10**5 and value.decode() for value in first.values())
    (snapshot / "of_old.csv").write_text("a table that is no more")
    assert write(small, "mine", snapshot.parent) == snapshot and content(snapshot) == first
    assert [path.name for path in snapshot.parent.iterdir()] == ["mine"]


def test_its_readme_says_how_when_and_on_what(snapshot: Path) -> None:
    text = (snapshot / "README.md").read_text()
    for part in ("--profile toy --name mine", "A processor", "2026-04-01T12:00:00", "| Commit | ", "11 of 12 ok"):
        assert part in text


def test_tables_in_markdown_hold_one_number_a_cell(small, snapshot: Path) -> None:
    text = (snapshot / "RESULTS.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| MSA |")]
    numbers = [cell for row in rows for cell in row[2:] if re.search(r"\d", cell)]
    assert len(numbers) > 20
    assert all(len(re.findall(r"\d+(?:\.\d+)?", cell)) == 1 for cell in numbers), numbers
    found = small.point(CellKey("msa", "two_hop", "16K"))
    assert f"| MSA | 16K | {found.value:.3f} | {found.low:.3f} | {found.high:.3f} | 16 |" in text


def test_csv_files_hold_six_digits_of_what_was_measured(small, snapshot: Path) -> None:
    scores = pd.read_csv(snapshot / "scores.csv").set_index(["task", "context", "system"])["value"]
    assert len(scores) == len(small.cells())
    for cell in small.cells():
        point, found = small.point(cell), scores[cell.task, cell.context, cell.system]
        assert pd.isna(found) if point is None else found == pytest.approx(point.value, rel=1e-5)


def test_figures_suit_a_light_and_a_dark_page(snapshot: Path) -> None:
    paths = list(snapshot.glob("*.svg"))
    assert paths
    for path in paths:
        text = path.read_text()
        ElementTree.fromstring(text)
        style, body = text.split("</style>", 1)
        assert "prefers-color-scheme: dark" in style and "<dc:date>" not in text
        assert not any(colour in body for colour in look.DARK)  # each of them is a variable
        used = set(re.findall(r"var\((--\w+)\)", body))
        assert used and all(style.count(f"{name}:") == 2 for name in used)


def test_a_directory_that_is_no_snapshot_is_left_alone(small, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "table.py").write_text("code")
    with pytest.raises(UserError, match="choose another name"):
        write(small, "tables", tmp_path)
    assert content(tmp_path / "tables") == {"table.py": b"code"}
