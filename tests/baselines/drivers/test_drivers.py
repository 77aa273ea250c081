"""The commands run, index, measure and check: files, resumption, expected failures, bad input."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

import baselines.bm25
from msa_base.stage_records import Chunking, IndexRecord, LatencyRecord, RunRecord
from msa_base.tables import read_predictions, write_unavailable
from tests.baselines.conftest import CONTEXTS, FakeReader, Workplace
from tests.baselines.drivers.test_supervise import FakeKernel


def record(workplace: Workplace, system: str, context: str) -> RunRecord:
    """run.json of a cell."""
    return RunRecord.open(workplace.paths.cell(system, "needles", context, 0) / "run.json")


def stamps(workplace: Workplace, system: str) -> list[int]:
    """Modification times of a system's records."""
    return [
        (workplace.paths.cell(system, "needles", context, 0) / "run.json").stat().st_mtime_ns for context in CONTEXTS
    ]


@pytest.mark.parametrize("system", ["closed_book", "oracle", "rag_bm25"])
def test_a_run_leaves_predictions_and_a_record_in_every_cell(workplace: Workplace, system: str) -> None:
    assert workplace.run(system) == 0
    for context in CONTEXTS:
        found = record(workplace, system, context)
        answers = read_predictions(workplace.paths.cell(system, "needles", context, 0) / "predictions.jsonl")
        assert found.status == "ok"
        assert found.n == len(answers) == 9
        assert found.peak_host_bytes > 1e6
        assert {"_models/reader", "_data/_corpora/prose/corpus.parquet"} <= found.made_from.data.keys()
        assert set(found.files) == {"predictions.jsonl", "prompts.jsonl"}
        assert found.hardware.cores >= 1
    assert ("_data/needles/4K/gold.parquet" in found.made_from.data) == (system == "oracle")


def test_dense_runs_on_an_index_built_by_the_driver(workplace: Workplace) -> None:
    assert workplace.command("index", "--index", "dense_small", "--corpus", "prose") == 0
    index = IndexRecord.open(workplace.paths.index("dense_small", "prose") / "index.json")
    assert index.index_bytes > 0 and list(index.files) == ["embeddings.safetensors"]
    assert workplace.run("rag_dense") == 0
    assert record(workplace, "rag_dense", "4K").index_bytes == index.index_bytes
    assert not list(workplace.results.rglob("*.tmp"))


def test_a_cell_beyond_the_window_is_unsupported_and_the_cap_holds(workplace: Workplace) -> None:
    assert workplace.run("full") == 0
    assert record(workplace, "full", "1K").n == 4
    assert record(workplace, "full", "4K").status == "unsupported_context"
    assert record(workplace, "full", "4K").n is None
    assert not (workplace.paths.cell("full", "needles", "4K", 0) / "predictions.jsonl").exists()


def test_a_second_run_touches_nothing_and_a_lost_cell_alone_is_run_again(workplace: Workplace) -> None:
    assert workplace.run("rag_bm25") == 0
    before = stamps(workplace, "rag_bm25")
    assert workplace.run("rag_bm25") == 0
    assert stamps(workplace, "rag_bm25") == before
    (workplace.paths.cell("rag_bm25", "needles", "2K", 0) / "run.json").unlink()
    assert workplace.run("rag_bm25") == 0
    after = stamps(workplace, "rag_bm25")
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_a_changed_entry_runs_every_cell_again(workplace: Workplace) -> None:
    assert workplace.run("rag_bm25") == 0
    before = stamps(workplace, "rag_bm25")
    workplace.systems["systems"]["rag_bm25"]["params"]["read_k"] = 3
    workplace.write_configs()
    assert workplace.run("rag_bm25") == 0
    assert not set(before) & set(stamps(workplace, "rag_bm25"))


def test_two_runs_give_identical_predictions(workplace: Workplace) -> None:
    def answers() -> list[tuple]:
        assert workplace.run("rag_bm25") == 0
        cells = [workplace.paths.cell("rag_bm25", "needles", context, 0) for context in CONTEXTS]
        found = [
            (a.question_id, a.text, a.routed_doc_ids)
            for cell in cells
            for a in read_predictions(cell / "predictions.jsonl")
        ]
        for cell in cells:
            (cell / "run.json").unlink()
        return found

    assert answers() == answers()


@pytest.mark.parametrize("way", ["killed", "MemoryError"])
def test_running_out_of_memory_costs_one_cell(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    plain = baselines.bm25.BM25Retriever.ingest
    kernel = FakeKernel(tmp_path / "cgroup", monkeypatch)

    def greedy(self: Any, view: Any) -> None:
        if len(view.base) == CONTEXTS["2K"] // 40:
            if way == "MemoryError":
                raise MemoryError
            kernel.kill()
        plain(self, view)

    monkeypatch.setattr(baselines.bm25.BM25Retriever, "ingest", greedy)
    assert workplace.run("rag_bm25") == 0
    assert [record(workplace, "rag_bm25", context).status for context in CONTEXTS] == ["ok", "out_of_memory", "ok"]
    assert ("rose from 0 to 1" in record(workplace, "rag_bm25", "2K").reason) == (way == "killed")
    before = stamps(workplace, "rag_bm25")
    assert workplace.run("rag_bm25") == 0
    assert stamps(workplace, "rag_bm25") == before
    assert workplace.command("measure", "--system", "rag_bm25") == 0
    measured = LatencyRecord.open(workplace.paths.latency("rag_bm25")).contexts
    assert [measured[context].status for context in CONTEXTS] == ["ok", "out_of_memory", "ok"]


@pytest.mark.parametrize("command", ["run", "measure"])
def test_a_worker_killed_from_outside_is_run_again(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, command: str
) -> None:
    plain = baselines.bm25.BM25Retriever.ingest

    def start() -> int:
        task = ["--task", "needles"] if command == "run" else []
        return workplace.command(command, "--system", "rag_bm25", *task)

    def unlucky(self: Any, view: Any) -> None:
        if len(view.base) == CONTEXTS["2K"] // 40:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, view)

    monkeypatch.setattr(baselines.bm25.BM25Retriever, "ingest", unlucky)
    assert start() == 2
    assert re.search(r"^error: .*SIGKILL", capfd.readouterr().err, re.MULTILINE)
    cells = [workplace.paths.cell("rag_bm25", "needles", context, 0) / "run.json" for context in CONTEXTS]
    assert not workplace.paths.latency("rag_bm25").exists()
    assert [cell.exists() for cell in cells] == [command == "run", False, False]
    first = cells[0].stat().st_mtime_ns if command == "run" else None
    monkeypatch.setattr(baselines.bm25.BM25Retriever, "ingest", plain)
    assert start() == 0
    if command == "run":
        assert [record(workplace, "rag_bm25", context).status for context in CONTEXTS] == ["ok"] * 3
        assert cells[0].stat().st_mtime_ns == first
    else:
        assert workplace.paths.latency("rag_bm25").exists()


def test_a_defect_stops_the_run_and_keeps_the_cells_before_it(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeReader.answer

    def broken(self: Any, pairs: Any) -> Any:
        if FakeReader.calls > 9:
            raise RuntimeError("shape mismatch")
        return plain(self, pairs)

    monkeypatch.setattr(FakeReader, "answer", broken)
    assert workplace.run("rag_bm25") == 1
    assert record(workplace, "rag_bm25", "1K").status == "ok"
    assert not (workplace.paths.cell("rag_bm25", "needles", "4K", 0) / "run.json").exists()
    monkeypatch.setattr(FakeReader, "answer", plain)
    assert workplace.run("rag_bm25") == 0
    assert record(workplace, "rag_bm25", "4K").status == "ok"


def test_latency_has_each_context_measured_by_itself(workplace: Workplace) -> None:
    for system in ("rag_bm25", "full"):
        assert workplace.command("measure", "--system", system) == 0
    found = LatencyRecord.open(workplace.paths.latency("rag_bm25")).contexts
    assert list(found) == sorted(CONTEXTS)
    assert all(cell.n == 3 and cell.total_s.median > 0.5 and cell.peak_host_bytes > 1e6 for cell in found.values())
    assert set(found["4K"].stage_s) == {"retrieve", "read", "decode"}
    beyond = LatencyRecord.open(workplace.paths.latency("full")).contexts["4K"]
    assert beyond.status == "unsupported_context" and beyond.total_s is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", "rag_bm52", "--task", "needles"), "unknown name 'rag_bm52'; did you mean 'rag_bm25'?"),
        (("--system", "rag_bm25", "--task", "needle"), "unknown name 'needle'; did you mean 'needles'?"),
    ],
)
def test_an_unknown_name_is_one_line_and_exit_2(
    workplace: Workplace, capfd: pytest.CaptureFixture, arguments: tuple[str, ...], message: str
) -> None:
    assert workplace.command("run", *arguments) == 2
    errors = capfd.readouterr().err.strip()
    assert message in errors and "\n" not in errors


@pytest.mark.parametrize(
    "name",
    ["_data/_corpora/prose/corpus.parquet", "_data/needles/2K/questions.parquet", "_data/needles/2K/overlays.parquet"],
)
@pytest.mark.parametrize("harm", ["cut", "missing", "other columns"])
def test_a_bad_table_is_one_line_and_exit_2(
    workplace: Workplace, capfd: pytest.CaptureFixture, name: str, harm: str
) -> None:
    path = workplace.paths.root / name
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif harm == "missing":
        path.unlink()
    else:
        path.write_bytes((workplace.paths.root / "_data/needles/1K/gold.parquet").read_bytes())
    assert workplace.run("rag_bm25") == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1 and str(path) in errors[0]
    assert not list(workplace.results.rglob("*.tmp"))


def test_a_full_disk_is_one_line_and_exit_2(
    workplace: Workplace, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import baselines.drivers.run

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "predictions.jsonl")

    monkeypatch.setattr(baselines.drivers.run, "write_predictions", full)
    assert workplace.run("rag_bm25") == 2
    assert "error: predictions.jsonl: no space left on the disk; free some" in capfd.readouterr().err
    assert not list(workplace.paths.root.glob("rag_bm25/**/run.json"))


def test_the_check_finds_a_bad_parameter_before_anything_runs(
    workplace: Workplace, capfd: pytest.CaptureFixture
) -> None:
    workplace.systems["systems"]["rag_dense"]["params"]["raed_k"] = 3
    workplace.write_configs()
    assert workplace.command("check") == 2
    assert "systems: rag_dense: params: unknown key 'raed_k'; did you mean 'read_k'?" in capfd.readouterr().err


def test_an_index_that_fails_leaves_the_old_one(workplace: Workplace) -> None:
    arguments = ("--index", "dense_small", "--corpus", "prose")
    assert workplace.command("index", *arguments) == 0
    directory = workplace.paths.index("dense_small", "prose")
    before = sorted((path.name, path.read_bytes()) for path in directory.iterdir())
    workplace.paths.corpus("prose").write_bytes(b"broken")
    assert workplace.command("index", *arguments) == 2
    assert sorted((path.name, path.read_bytes()) for path in directory.iterdir()) == before
    assert [path.name for path in directory.parent.iterdir()] == ["prose"]


def test_cells_without_data_say_so_and_run_when_the_data_come(workplace: Workplace) -> None:
    workplace.write_view("2K", 50, unavailable="data/x.json: not there; fetch it: command")
    assert workplace.run("rag_bm25") == 0
    assert [record(workplace, "rag_bm25", context).status for context in CONTEXTS] == [
        "ok",
        "unavailable_data",
        "ok",
    ]
    found = record(workplace, "rag_bm25", "2K")
    assert found.reason == "data/x.json: not there; fetch it: command" and found.n is None
    assert workplace.command("measure", "--system", "rag_bm25") == 0
    measured = LatencyRecord.open(workplace.paths.latency("rag_bm25")).contexts
    assert [measured[context].status for context in CONTEXTS] == ["ok", "unavailable_data", "ok"]
    chunking = Chunking(strategy="fixed", document_tokens=40)
    workplace.write_view("2K", 50, chunking=chunking, context_tokens=77)
    assert workplace.run("rag_bm25") == 0
    found = record(workplace, "rag_bm25", "2K")
    assert (found.status, found.context_tokens) == ("ok", 77)
    assert found.chunking == chunking


def test_an_index_over_an_unavailable_corpus_is_empty_and_says_why(workplace: Workplace) -> None:
    write_unavailable("data/x.json: not there", workplace.paths.corpus("prose"))
    for context in CONTEXTS:
        workplace.write_view(context, 0, unavailable="data/x.json: not there")
    assert workplace.command("index", "--index", "dense_small", "--corpus", "prose") == 0
    index = IndexRecord.open(workplace.paths.index("dense_small", "prose") / "index.json")
    assert (index.status, index.reason, index.files) == ("unavailable_data", "data/x.json: not there", {})
    assert workplace.run("rag_dense") == 0
    assert record(workplace, "rag_dense", "4K").status == "unavailable_data"
