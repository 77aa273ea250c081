"""The plan of the paper's tables: every cell of every table has a row, and what is served its tokens and dollars."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from baselines.planning.cost import Planner
from baselines.planning.hardware import HERE, Hardware, read_hardware
from baselines.planning.judges import judging
from baselines.planning.plan import rows
from msa_base.load import load
from msa_base.paths import DIRECTORY, Paths
from reports import paper_plan
from reports.published.tables import read_tables

MACHINE = Hardware(
    title="this machine", source="a test", devices=0, device_gb=0, host_gb=25, disk_gb=60, dtype="float32",
    matmul_tflops=0.4, memory_gb_per_s=0, link_gb_per_s=0, matmul_share=0.25, memory_share=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The plan of each profile behind `paper` and its rehearsal, of a clean tree, as its command prints it."""
    found, place = {}, tmp_path_factory.mktemp("results")
    names = {name for table in read_tables().values() for name in table.exact.profiles}
    for name in sorted(names):
        experiment = load(name)
        planner = Planner(experiment, Paths.of(name, place))
        machines = {**read_hardware(DIRECTORY), HERE: MACHINE}
        found[name] = json.loads(
            json.dumps(
                {
                    "rows": [asdict(row) for row in rows(planner, machines)],
                    "judges": [asdict(judging(planner, judge)) for judge in experiment.profile.judges],
                }
            )
        )
    return found


def summaries(plans: dict[str, Any], name: str, place: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Each line of the summary by table and profile."""
    found = {}
    for table, spec in read_tables().items():
        for profile in paper_plan.standing(spec, name):
            line = paper_plan.summary(spec, load(profile), Paths.of(profile, place), plans[profile])
            found[table, profile] = dict(zip(paper_plan.HEAD[2:], line, strict=True))
    return found


@pytest.mark.parametrize("name", ["paper", "paper_rehearsal"])
def test_every_cell_of_every_table_is_planned(plans: dict[str, Any], tmp_path: Path, name: str) -> None:
    found = summaries(plans, name, tmp_path)
    assert {table for table, _ in found} == {"table-2", "table-3", "table-4", "figure-1", "figure-4"}
    for line in found.values():
        assert int(line["cells"]) == int(line["planned"]) > 0
        assert name != "paper" or float(line["disk GB"].replace(",", "")) > 0


def test_what_is_served_has_its_tokens_and_its_price(plans: dict[str, Any], tmp_path: Path) -> None:
    (gpt,) = [row for row in plans["paper_rivals"]["rows"] if (row["name"], row["size"]) == ("full_gpt_41", "1M")]
    read, written = gpt["served_tokens"]
    assert read == pytest.approx(500 * 1e6, rel=0.02) and written == 500 * 16
    assert gpt["dollars"] == pytest.approx((2 * read + 8 * written) / 1e6)
    line = summaries(plans, "paper", tmp_path)["figure-1", "paper_rivals"]
    assert float(line["dollars"].replace(",", "")) > gpt["dollars"] and "qwenlong_l15" in line["no price"]
    best = summaries(plans, "paper", tmp_path)["table-3", "paper_best"]
    assert best["no price"] == "llama33_70b, qwen3_235b"


def test_extraction_is_the_longest_part_of_table_2(plans: dict[str, Any]) -> None:
    seconds = {row["name"]: row["machines"]["A800-80GB-x2"]["seconds"] for row in plans["paper_qa"]["rows"]}
    assert seconds["hipporag"] > max(seconds["rag_rerank"], seconds["msa"])
