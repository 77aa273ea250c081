"""What is damaged in a results tree is made anew, and what is not stays: with the commands, in their order."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from msa_base.errors import UserError
from msa_base.execution import prepare
from msa_base.load import load
from msa_base.seal import Seal, write_seal
from msa_base.stage_records import RunRecord, broken, records, refused, sweep
from msa_base.tables import read_predictions, read_table, write_table
from tests.baselines.conftest import CONTEXTS, Workplace

HARMS: dict[str, Callable[[Path], Any]] = {
    "removed": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "edited": lambda path: path.write_bytes(
        path.read_bytes()[:-9] + bytes([path.read_bytes()[-9] ^ 1]) + path.read_bytes()[-8:]
    ),
}
SYSTEMS = ("rag_bm25", "rag_dense")


def drop_broken(root: Path) -> list[str]:
    """As the Snakefile does before a run."""
    found = broken(root)
    for path in found:
        path.unlink()
    return list(found.values())


def stages(workplace: Workplace) -> list[Callable[[], None]]:
    """The commands from indexes to the summary, in the workflow's order."""
    commands = ["baselines.drivers.index --index dense_small --corpus prose"]
    for system in SYSTEMS:
        commands += [f"baselines.drivers.run --system {system} --task needles"]
        commands += [f"baselines.drivers.measure --system {system}"]
        commands += [f"tasks.stages.score --system {system} --task needles"]

    def work(module: str, *arguments: str) -> None:
        places = ["--profile", "test", "--configs", str(workplace.configs), "--results", str(workplace.results)]
        sys.argv = [module, *arguments, *places]
        importlib.import_module(module).main()

    return [partial(work, *command.split()) for command in [*commands, "reports.summarise"]]


@pytest.fixture
def pipeline(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Runs every stage from indexes to the summary, as the workflow does; what the check before it said."""
    monkeypatch.setattr(sys, "argv", [])

    def run() -> list[str]:
        found = drop_broken(workplace.paths.root)
        for stage in stages(workplace):
            stage()
        assert drop_broken(workplace.paths.root) == []
        return found

    run()
    return run


def made(workplace: Workplace) -> list[Path]:
    """Every file that the stages made."""
    root = workplace.paths.root
    folders = [root / "_indexes", *(root / system for system in SYSTEMS)]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sorted([*found, *(path for path in root.iterdir() if path.is_file())])


def results(workplace: Workplace) -> dict[str, Any]:
    """Answers, scores and summary, without times."""
    found: dict[str, Any] = {}
    for system in SYSTEMS:
        for context in CONTEXTS:
            cell = workplace.paths.cell(system, "needles", context, 0)
            answers = read_predictions(cell / "predictions.jsonl")
            found[f"{system} {context}"] = [(a.question_id, a.text, a.routed_doc_ids) for a in answers]
            found[f"{system} {context} scores"] = read_table("scores", cell / "scores.parquet")
            found[f"{system} {context} status"] = RunRecord.open(cell / "run.json").status
    for row in read_table("summary", workplace.paths.summary):
        if row["unit"] == "share":
            found[f"summary {row['system']} {row['context']} {row['metric']}"] = row
    return found


def test_a_finished_tree_stays_as_it_is(workplace: Workplace, pipeline: Callable) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in made(workplace) if path.name not in ("summary.parquet",)}
    before = {path: path.read_bytes() for path in made(workplace) if path.name != "summary.parquet"}
    assert len(records(workplace.paths.root)) > 12
    assert pipeline() == []
    assert before == {path: path.read_bytes() for path in before}
    answered = [path for path in stamps if path.name in ("predictions.jsonl", "run.json", "scores.parquet")]
    assert answered and all(path.stat().st_mtime_ns == stamps[path] for path in answered)


def test_any_files_damaged_in_any_way_are_restored(workplace: Workplace, pipeline: Callable) -> None:
    undisturbed, draw, tries = results(workplace), random.Random(7), 0
    for _ in range(12):
        chosen = draw.sample(made(workplace), 6)
        harms = [draw.choice(sorted(HARMS)) for _ in chosen]
        before = {path.parent: path.read_bytes() for path in made(workplace) if path.name == "predictions.jsonl"}
        for path, harm in zip(chosen, harms, strict=True):
            HARMS[harm](path)
        pipeline()
        what = [f"{harm} {path.relative_to(workplace.paths.root)}" for path, harm in zip(chosen, harms, strict=True)]
        assert results(workplace) == undisturbed, what
        whole = before.keys() - {path.parent for path in chosen} - {path.parents[2] for path in chosen}
        assert all((cell / "predictions.jsonl").read_bytes() == before[cell] for cell in whole), what
        tries += len(chosen)
    assert tries >= 60


def test_each_damage_is_named_and_costs_the_seals_above_it_alone(workplace: Workplace, pipeline: Callable) -> None:
    root, whole = workplace.paths.root, workplace.results / "whole"
    shutil.copytree(root, whole)
    for path in made(workplace):
        if path.name.startswith("."):
            continue  # the copy of a seal, which nobody misses
        for name, harm in HARMS.items():
            harm(path)
            said, lost = (
                drop_broken(root),
                {seal for seal in records(whole) if not (root / seal.relative_to(whole)).exists()},
            )
            removed_seal = path.suffix == ".json" and name == "removed"
            assert removed_seal or str(path) in " ".join(said), (name, path, said)
            assert 1 <= len(lost) <= 3 and all(
                path.is_relative_to(root / seal.parent.relative_to(whole)) for seal in lost
            )
            for file in {path, *(root / seal.relative_to(whole) for seal in lost)}:
                shutil.copy2(whole / file.relative_to(root), file)


@pytest.mark.parametrize("name", ["predictions.jsonl", "run.json", "../../scores.json"])
@pytest.mark.parametrize("harm", ["emptied", "cut", "edited"])
def test_scoring_and_summary_refuse_what_does_not_match(
    workplace: Workplace, pipeline: Callable, monkeypatch: pytest.MonkeyPatch, name: str, harm: str
) -> None:
    path = (workplace.paths.cell("rag_bm25", "needles", "2K", 0) / name).resolve()
    HARMS[harm](path)
    places = ["--profile", "test", "--configs", str(workplace.configs), "--results", str(workplace.results)]
    modules = {"tasks.stages.score": ["--system", "rag_bm25", "--task", "needles"], "reports.summarise": []}
    for module, arguments in modules.items():
        if name == "../../scores.json" and module == "tasks.stages.score":
            continue  # it writes it anew
        monkeypatch.setattr(sys, "argv", [module, *arguments, *places])
        with pytest.raises(UserError, match=f"{path.name}: .*(run the workflow|run the same command)"):
            importlib.import_module(module).main()


def test_a_cell_run_by_hand_after_an_edit_is_scored_anew(
    workplace: Workplace, pipeline: Callable, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    import msa_base.closure

    plain = msa_base.closure.code
    changed = lambda *starts, **cut: {**plain(*starts, **cut), "baselines.bm25": "edited"}  # noqa: E731
    monkeypatch.setattr(msa_base.closure, "code", changed)
    capfd.readouterr()
    assert workplace.run("rag_bm25") == 0
    assert "run.json: made, since code changed: baselines.bm25\n" in capfd.readouterr().out
    scores = workplace.paths.cell("rag_bm25", "needles", "2K", 0) / "scores.parquet"
    assert not scores.exists()
    assert any("scores.parquet: is missing" in line for line in pipeline())
    assert read_table("scores", scores)


def test_an_index_of_equal_content_runs_no_cell_again(workplace: Workplace, pipeline: Callable) -> None:
    cell = workplace.paths.cell("rag_dense", "needles", "4K", 0) / "run.json"
    before = cell.stat().st_mtime_ns
    directory = workplace.paths.index("dense_small", "prose")
    for path in (directory / "index.json", directory / ".index.json"):
        path.unlink()
    pipeline()
    assert (directory / "index.json").exists() and cell.stat().st_mtime_ns == before


def test_what_a_plan_refused_is_found_for_the_next_run(workplace: Workplace, pipeline: Callable) -> None:
    root = workplace.paths.root
    assert refused(root) == []
    path = workplace.paths.cell("rag_bm25", "needles", "4K", 0) / "run.json"
    RunRecord.open(path).model_copy(update={"refused": True}).write(path)
    cells = root / "rag_bm25" / "needles" / "cells.json"
    write_seal(cells, Seal.read(cells).made_from, Seal.read(cells).files)
    assert refused(root) == [cells]
    # of a system that left the profile, or that nobody chose now, it stays as it is
    experiment = load("test", workplace.configs)
    prepare(experiment, workplace.paths, [root / "rag_dense" / "needles" / "cells.json"])
    assert cells.exists() and path.exists()
    prepare(experiment, workplace.paths, [cells])
    assert not cells.exists() and path.exists() and cells.with_name(".cells.json").exists()


def test_records_of_another_format_are_refused_by_name(workplace: Workplace, pipeline: Callable) -> None:
    path = workplace.paths.cell("rag_bm25", "needles", "1K", 0) / "run.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match=r"run\.json: is of format 2, this version reads format 1; run the workflow"):
        RunRecord.read(path)
    path.write_text('{"status": "ok", "inputs": {}}')
    with pytest.raises(UserError, match=r"run\.json: is of format none"):
        RunRecord.read(path)


@pytest.mark.parametrize("shift_s", [-(10**6), 10**6], ids=["past", "future"])
def test_dates_make_nothing_stale_or_fresh(workplace: Workplace, pipeline: Callable, shift_s: float) -> None:
    """A clock that was set back or ahead: what was made of other data is made again, what was not stays."""
    root = workplace.paths.root
    for path in [path for path in root.rglob("*") if path.is_file()]:
        found = path.stat()
        os.utime(path, (found.st_atime + shift_s, found.st_mtime + shift_s))
    sweep(root)
    assert refused(root) == [] and broken(root) == {}
    assert all(path.stat().st_mtime <= time.time() for path in records(root))
    questions = workplace.paths.prepared("needles", "2K") / "questions.parquet"
    rows, before = read_table("questions", questions), questions.stat()
    rows[0]["text"] += " again"
    write_table("questions", rows, questions)
    os.utime(questions, (before.st_atime, before.st_mtime - 10))
    outputs = [root / system / name for system in SYSTEMS for name in ("latency.json", "needles/cells.json")]
    assert set(outputs) <= set(refused(root))


def test_what_killed_processes_had_half_written_goes(workplace: Workplace, pipeline: Callable) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    cell = workplace.paths.cell("rag_bm25", "needles", "1K", 0)
    gone, stays = cell / f".run.json.{dead.stdout.strip()}.tmp", cell / f".run.json.{os.getpid()}.tmp"
    gone.mkdir()
    (gone / "part").write_text("half")
    stays.write_text("half")
    sweep(workplace.paths.root)
    assert not gone.exists() and stays.exists()
