"""The benchmark of a workflow: jobs as Snakemake noted them, what they made, ratios to a kernel of the same call."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from msa.bench import workflow
from msa.bench.workflow import Work, merged, noted, row
from msa_base.errors import UserError
from msa_base.load import load
from msa_base.paths import Paths
from msa_base.tables import write_table
from reports import bench as report
from tests.evaluated import write_run

JOB = {"profile": "smoke", "job": "report", "ended": "2026-01-01", "kernel_s": "1"}


def note(metadata: Path, output: str, log: Path, start_s: float, end_s: float | None) -> None:
    """One output of a job, as Snakemake notes it."""
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / output).write_text(json.dumps({"log": [str(log)], "starttime": start_s, "endtime": end_s}))


def test_a_job_counts_once_and_those_of_other_runs_do_not(tmp_path: Path) -> None:
    logs, metadata = tmp_path / "tiny" / "_logs", tmp_path / "metadata"
    note(metadata, "a", logs / "prepare.facts.log", 10, 14)
    note(metadata / "@deep", "b", logs / "prepare.facts.log", 10, 14)
    note(metadata, "c", logs / "run.msa.facts.log", 2, 5)
    note(metadata, "d", logs / "report.log", 20, None)
    note(metadata, "e", tmp_path / "smoke" / "_logs" / "prose.log", 0, 1)
    (metadata / "f").write_text(json.dumps({"log": []}))
    assert [(job.name, job.end_s - job.start_s) for job in noted(logs, metadata)] == [
        ("run.msa.facts", 3), ("prepare.facts", 4),
    ]  # fmt: skip
    assert list(noted(logs, tmp_path / "nothing")) == []


def test_what_a_job_made_is_what_its_stage_recorded(tmp_path: Path) -> None:
    experiment, paths = load("smoke"), Paths.of("smoke", tmp_path)
    task, system = next(iter(experiment.profile.tasks)), experiment.profile.systems[0]
    cell = paths.cell(system, task, experiment.profile.contexts[0], experiment.profile.seeds[0])
    cell.mkdir(parents=True)
    write_run(cell, n=16, wall_s=2.5)
    assert workflow.work(f"run.{system}.{task}", experiment, paths) == Work("answer", 16, 2.5)
    paths.model("m.1").mkdir(parents=True)
    steps = [{"tokens": 100, "seconds": 0.5}, {"tokens": 50, "seconds": 0.75}]
    (paths.model("m.1") / "train.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    assert workflow.work("train.m.1", experiment, paths) == Work("token", 150, 0.75)
    (paths.model("m.1") / "train.jsonl").write_text('{"loss": 1}\n')  # another trainer's
    assert workflow.work("train.m.1", experiment, paths) == Work("step", 1)
    paths.samples("short").mkdir(parents=True)
    sample = {"sample_id": 0, "bank_id": 0, "task": "s1", "question": "?", "answer": "!", "chain": [], "notes": []}
    write_table("samples", [sample] * 3, paths.samples("short") / "samples.parquet")
    assert workflow.work("samples.short", experiment, paths) == Work("sample", 3)
    assert workflow.work("report", experiment, paths) == Work("job", 1)
    with pytest.raises(UserError, match=r"latency\.json"):
        workflow.work(f"latency.{system}", experiment, paths)


def test_a_ratio_is_of_seconds_for_one_to_those_of_the_kernel() -> None:
    found = row("run.msa.facts", 10.0, Work("answer", 5, 4.0), 0.5)
    assert (found["stage"], found["status"], found["units_per_s"], found["kernels_per_unit"]) == ("run", "ok", 0.5, 4.0)
    for done, why in (
        (Work("answer", 5, 11.0), "earlier job"), (Work("answer", 0), "nothing"), (UserError("x is missing"), "x is"),
    ):  # fmt: skip
        lost = row("run.msa.facts", 10.0, done, 0.5)
        assert lost["status"].startswith("not measured: ") and why in lost["status"] and "units_per_s" not in lost


def test_a_job_that_did_not_run_again_keeps_its_kernel() -> None:
    later = JOB | {"kernel_s": "2"}
    assert merged([JOB], [later]) == [JOB]
    assert merged([JOB], [later | {"ended": "2026-01-02"}]) == [later | {"ended": "2026-01-02"}]
    assert merged([JOB], [later | {"profile": "tiny"}]) == [JOB, later | {"profile": "tiny"}]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command over results of smoke, with a workflow that notes one report and ends with a code."""
    monkeypatch.setattr(workflow, "MATMUL", 64)
    monkeypatch.setattr(workflow, "STARTED", ("msa_base.reference",))
    monkeypatch.setattr(workflow, "start", lambda module: None)
    monkeypatch.chdir(tmp_path)
    words = ["--profile", "smoke", "--results", str(tmp_path), "--out", str(tmp_path / "out")]

    def called(code: int = 0, start_s: float | None = None) -> int:
        def run(places: list[str]) -> int:
            assert places[:2] == ["--profile", "smoke"] and places[-2:] == ["--systems", "main"]
            if start_s is not None:
                note(workflow.METADATA, "a", tmp_path / "smoke" / "_logs" / "report.log", start_s, start_s + 2)
            return code

        monkeypatch.setattr(workflow, "run", run)
        monkeypatch.setattr(sys, "argv", ["msa.bench.workflow", *words])
        return workflow.main()

    return called


def test_the_command_writes_a_row_a_job_and_goes_on(call: Callable[..., int], tmp_path: Path) -> None:
    def rows() -> list[dict[str, str]]:
        return list(csv.DictReader((tmp_path / "out" / "workflow.csv").open()))

    assert call(code=2) == 2 and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="notes no job"):
        call()
    assert call(start_s=time.time() + 5) == 0
    first, start = rows()
    assert (first["stage"], first["seconds"][:3], first["kernel_of"]) == ("report", "2.0", "same run")
    assert float(first["kernels_per_unit"]) == pytest.approx(2 / float(first["kernel_s"]))
    assert (start["stage"], start["unit"]) == ("start", "process")
    assert call() == 0 and rows()[0] == first  # nothing ran again
    assert call(start_s=1e9) == 0 and rows()[0]["kernel_of"] == "later"


def test_stages_are_summed_and_start_up_is_what_their_work_leaves() -> None:
    jobs = [
        row("run.msa.facts", 10.0, Work("answer", 5, 4.0), 0.5),
        row("run.msa.two_hop", 6.0, Work("answer", 3, 4.0), 1.0),
        row("run.lost.two_hop", 6.0, UserError("gone"), 1.0),
        row("score.msa.facts", 1.0, Work("answer", 5), 0.5),
    ]
    table = report.stages(pd.DataFrame([{"profile": "smoke", **job} for job in jobs]))
    names = [column.name for column in table.columns]
    run, score = (dict(zip(names, values, strict=True)) for values in table.rows)
    assert (run["jobs"], run["seconds"], run["start_up"], run["not_measured"]) == (2, 16.0, 0.5, 1)
    assert (run["units_per_s"], run["kernels_per_unit"]) == (0.5, 26 / 8)
    assert score["start_up"] is None and score["kernels_per_unit"] == pytest.approx(0.4)
    assert "Start-up" in "\n".join(table.text())
