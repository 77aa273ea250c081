"""The benchmark measures what it says, goes on where it stopped, and says so where something cannot be measured."""

from __future__ import annotations

import csv
import sys
from importlib.util import find_spec

import pytest
import torch

from msa.bench import __main__ as command
from msa.bench import deficit, measure, peers
from msa.bench.measure import COLUMNS, BenchCase, grid, necessary
from msa.ops import reference
from msa.ops.keys import Keys
from msa_base.errors import UserError

CPU = torch.device("cpu")
OPTIONAL = ("numkong", "maxsim_cpu")  # the extra `peers`: a machine may have no wheel of them


def opened(peer, make):
    """A way to route; None where its library is not installed, which it has to say."""
    if peer in OPTIONAL and find_spec(peer) is None:
        with pytest.raises(peers.NotMeasured, match=f"{peer}.*peers"):
            make()
        return None
    return make()


@pytest.mark.parametrize(("questions", "tokens", "chunks"), [(1, 3, 130), (2, 5, 257)])
def test_every_way_to_route_finds_the_same_documents(questions, tokens, chunks):
    task = peers.Task.random(chunks, questions, tokens, CPU)
    true = reference.chunk_scores(task.folded.double(), torch.ones(questions, tokens, dtype=torch.bool), task.keys)
    best = reference.document_scores(true, task.offsets).topk(16).indices
    ways = {name: make for name, make in peers.ways(task, 1).items() if name[0] != "compiled" and "int8" not in name}
    assert {name[0] for name in ways} == {"eager", "folded", "faiss", "first_pass", "ours", *OPTIONAL}
    for (peer, dtype), make in ways.items():
        if (run := opened(peer, make)) is None:
            continue
        found = run()
        assert found.shape == (questions, 16)
        if dtype == "float32":
            assert torch.equal(found.sort(1).values, best.sort(1).values), peer
            assert peers.deficit(task, found, 2) == pytest.approx(0, abs=1e-12)
    worst = reference.document_scores(true, task.offsets).topk(16, largest=False).indices
    assert peers.deficit(task, worst, 2) > 0.001


def test_few_documents_are_no_obstacle():
    task = peers.Task.random(9, 1, 2, CPU)
    made = [opened(name[0], make) for name, make in peers.ways(task, 2).items() if name[0] != "compiled"]
    assert {tuple(sorted(run()[0, :3].tolist())) for run in made if run} == {(0, 1, 2)}


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_products_of_a_library_find_the_documents_of_the_stored_keys(dtype):
    task = peers.Task.random(257, 2, 5, CPU)
    rows, kept = Keys.store(task.folded.flatten(0, 1), dtype).exact(), task.stored(dtype).exact()
    scores = reference.document_scores((rows @ kept.T).view(2, 5, -1).amax(1), task.offsets)
    if run := opened("numkong", peers.ways(task, 2)["numkong", dtype]):
        assert torch.equal(run(), scores.topk(16).indices)


def test_what_is_not_installed_is_said_and_measured_once_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "MATMUL", 128)
    monkeypatch.setattr(command, "in_process", measure.measure)
    monkeypatch.setitem(sys.modules, "faiss", None)
    out, threads = tmp_path / "routing.csv", torch.get_num_threads()
    options = {"device": "cpu", "threads": 1, "seconds": 0.01, "repetitions": 1, "only": "faiss"}
    try:
        command.routing([BenchCase("16K", 32, 1, "warm")], out, options)
        (row,) = command.read(out, COLUMNS)
        assert row["status"].startswith("not measured: ") and "faiss" in row["status"] and row["median_s"] == ""
        monkeypatch.undo()
        monkeypatch.setattr(command, "in_process", measure.measure)
        command.routing([BenchCase("16K", 32, 1, "warm")], out, options)
    finally:
        torch.set_num_threads(threads)
    assert [row["status"] for row in command.read(out, COLUMNS)] == ["ok"]


def test_wrong_documents_are_no_measurement(monkeypatch):
    monkeypatch.setattr(measure, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "MATMUL", 128)
    best = peers.best_documents
    monkeypatch.setattr(peers, "best_documents", lambda scores, offsets: best(-scores, offsets))
    threads = torch.get_num_threads()
    options = {"device": "cpu", "threads": 1, "seconds": 0.01, "repetitions": 1, "only": "folded float32"}
    try:
        (row,) = measure.measure(BenchCase("16K", 32, 1, "warm"), set(), options)
    finally:
        torch.set_num_threads(threads)
    assert row["status"].startswith("failed: a document that it chose scores") and "median_s" not in row


def test_a_library_asked_once_a_token_is_not_asked_for_thousands():
    task = peers.Task.random(8, 1, peers.MAXSIM_CALLS + 1, CPU)
    if find_spec("maxsim_cpu"):
        with pytest.raises(peers.NotMeasured, match="257 calls"):
            peers.maxsim_cpu(task)


def test_necessary_work_is_counted_once():
    cell = BenchCase("1M", 32, 8, "cold")
    assert cell.chunks == 15_625
    assert necessary(cell, "bfloat16") == (15_625 * 1024 * 2 + 256 * 4096, 2 * 256 * 15_625 * 1024)
    assert necessary(cell, "int8")[0] == 15_625 * 1028 + 256 * 4096


def test_the_grid_keeps_to_memory_and_has_no_cell_twice():
    cells = grid(full=False, quick=False, free_bytes=10**9)
    assert cells[0] == BenchCase("1M", 32, 1, "cold") and {cell.context for cell in cells} == {"16K", "128K", "1M"}
    assert len(set(cells)) == len(cells) and {(c.question_tokens, c.batch) for c in cells if c.context == "1M"} == {
        (tokens, batch) for tokens in (32, 256) for batch in (1, 8, 64)
    }
    assert "100M" in {cell.context for cell in grid(full=True, quick=False, free_bytes=10**12)}


def test_a_row_holds_every_column_and_ceilings_are_this_machines(monkeypatch):
    monkeypatch.setattr(measure, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "MATMUL", 128)
    threads = torch.get_num_threads()
    options = {
        "device": "cpu",
        "threads": 1,
        "seconds": 0.05,
        "repetitions": 3,
        "only": "b",
    }  # folded and ours, bfloat16
    try:
        rows = measure.measure(
            BenchCase("16K", 32, 1, "cold"),
            {("compiled", "bfloat16"), ("compiled", "float32"), ("compiled", "int8"), ("numkong", "bfloat16")},
            options,
        )
    finally:
        torch.set_num_threads(threads)
    assert {row["peer"] for row in rows} == {"eager", "first_pass", "folded", "ours"}
    for row in rows:
        assert set(row) == set(COLUMNS) and row["status"] == "ok" and 1 <= row["n"] <= 3
        assert 0 < row["median_s"] <= row["p90_s"] and row["bandwidth_bytes_per_s"] > 1e6
        assert row["bandwidth_share"] == pytest.approx(
            row["necessary_bytes"] / row["median_s"] / row["bandwidth_bytes_per_s"]
        )


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    asked = []

    def fake(cell, done, options):
        asked.append((cell.cache, set(done)))
        if cell.cache == "warm" and len(asked) == 2:
            return -9
        shown = {
            "context": cell.context,
            "question_tokens": 32,
            "batch": 1,
            "cache": cell.cache,
            "peer": "ours",
            "dtype": "int8",
        }
        return [] if ("ours", "int8") in done else [shown | {"status": "ok"}]

    monkeypatch.setattr(command, "in_process", fake)
    cells, out = grid(False, True, 10**9), tmp_path / "routing.csv"
    command.routing(cells, out, {})
    assert [row["status"] for row in command.read(out, command.COLUMNS)] == [
        "ok",
        "killed by signal 9, as when memory runs out",
    ]
    command.routing(cells, out, {})
    assert asked[2:] == [("cold", {("ours", "int8")}), ("warm", set())]
    assert [(row["cache"], row["peer"], row["status"]) for row in command.read(out, command.COLUMNS)] == [
        ("cold", "ours", "ok"),
        ("warm", "ours", "ok"),
    ]
    monkeypatch.setattr(command, "in_process", lambda *given: 1)
    with pytest.raises(UserError, match="its own message stands above"):
        command.routing(cells, out, {})
    out.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="delete it or choose another --out"):
        command.read(out, command.COLUMNS)


def test_the_quick_command_writes_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "MATMUL", 128)
    monkeypatch.setattr(command, "in_process", measure.measure)
    out, threads = tmp_path / "out", torch.get_num_threads()
    words = ["--quick", "--only", "ours bfloat16", "--threads", "1", "--model", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["msa.bench", *words])
    try:
        assert command.main() == 0
    finally:
        torch.set_num_threads(threads)
    assert "engine: not measured" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "routing.csv").open()))
    assert [(row["peer"], row["dtype"], row["cache"], row["status"]) for row in rows] == [
        ("ours", "bfloat16", cache, "ok") for cache in ("cold", "warm")
    ]
    assert float(rows[0]["deficit"]) < 1e-3 and "chunk_scores" in (out / "machine.json").read_text()


def test_a_cell_has_a_process_of_its_own():
    options = {"device": "cpu", "threads": 1, "seconds": 0.05, "repetitions": 1, "only": "no such peer"}
    assert measure.in_process(BenchCase("16K", 32, 1, "cold"), set(), options) == []


def test_without_a_gpu_the_gpu_command_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["msa.bench", "--gpu"])
    with pytest.raises(UserError, match="torch finds no CUDA device here"):
        command.main()


def test_exact_routing_has_the_deficit_of_its_stored_keys_alone():
    (_, keys, offsets, batches), *_ = deficit.random_vectors(9, 200, 4)
    assert sum(len(batch.tokens) for batch in batches) == 9
    full, coarse = (deficit.measure(keys, offsets, batches, dtype) for dtype in ("float32", "int8"))
    assert full["exact"] < 1e-7 and full["overlap"] == 1.0 and full["questions"] == 9
    assert 0 <= coarse["exact"] <= coarse["first_pass"] + 1e-3 < 5e-3
