"""The Weights & Biases mirror: what runs hold, resumed and damaged runs, a server that receives and one that hangs."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from msa_base.errors import UserError
from msa_base.paths import SEAL
from msa_base.seal import MadeFrom, sealed, write_seal
from reports import build, track
from reports.mirror import writer
from reports.mirror.runs import sources
from reports.mirror.writer import Mirror, NotMirrored, send_with
from reports.track import Tracker
from tests.reports.conftest import Tree
from tests.reports.wandb_files import offline_runs
from tests.reports.wandb_server import serving

SMALL = {
    "tasks": {"scaling_facts": 8},
    "contexts": ["16K"],
    "models": ["backbone", "msa", "reader"],
    "systems": ["msa"],
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the caller's environment says, it is as it was afterwards."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def small(new_tree: Callable) -> Tree:
    """A tree with one training and one cell."""
    tree = new_tree(**SMALL)
    tree.prepare("scaling_facts")
    tree.training("msa", routed=True)
    tree.cell("msa", "scaling_facts", "16K", 0.5)
    return tree


def tracker(tree: Tree, is_online: bool = False, **options: Any) -> Tracker:
    """A tracker of a tree."""
    given = {"profile": tree.profile, "results": tree.root, "configs": tree.configs, "upload_bytes": 0, "follow": False}
    return Tracker(Namespace(**{**given, **options}), tree.experiment, tree.paths, is_online)


def written(tree: Tree, **options: Any) -> list[str]:
    """What one mirroring writes."""
    found = tracker(tree, **options)
    names = found.update(is_last=True)
    found.mirror.lock.close()
    assert not found.failure
    return names


def contents(tree: Tree) -> dict[str, Any]:
    """What the offline runs of a tree show."""
    return {name: run.content for name, run in offline_runs(tree.paths.root / "wandb").items()}


def test_runs_hold_curves_cells_and_the_report(new_tree: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = new_tree(
        tasks={"scaling_facts": 16}, contexts=["16K"], systems=["msa"], models=["backbone", "msa", "reader"]
    )
    tree.grow()
    logs = tree.paths.root / "_logs"
    logs.mkdir()
    (logs / "progress.jsonl").write_text(
        '{"jobs_done": 1, "jobs": 3, "running": ["train msa"], "host_used_bytes": 5, "device_used_bytes": null}\n'
        '{"jobs_done": 2, "jo\n{"jobs_done": 3, "jobs": 3, "running": []}\n{"jobs_do'
    )
    tree.evidence()
    home = tree.root.parent / "home"
    home.write_text("a file, in which nobody can make a folder")
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setattr(build, "FIGURES", {"scaling": build.FIGURES["scaling"]})
    names = written(tree)
    cell = "msa/scaling_facts/16K/seed0"
    assert names == ["workflow", "train/backbone", "train/msa", "train/reader", cell, "latency/msa", "report"]
    runs = offline_runs(tree.paths.root / "wandb")
    assert set(runs) == set(names)
    assert {run.group for run in runs.values()} == {"toy"} and len({run.id for run in runs.values()}) == len(runs)

    progress = [row["jobs_done"] for row in runs["workflow"].history]
    assert progress == [1, 3] and runs["workflow"].history[0]["running"] == "train msa"
    assert "device_used_bytes" not in runs["workflow"].history[0]  # null is no number

    curve = runs["train/msa"].history
    assert [row["_step"] for row in curve] == list(range(200)) and "recall@1/layer3" in curve[0]
    entry = tree.experiment.models["msa"]
    assert runs["train/msa"].config["entry"]["params"] == entry.params and runs["train/msa"].kind == "train"
    assert runs["train/msa"].summary["complete"] is True

    run, table = runs[cell], runs[cell].tables["predictions"]
    assert run.kind == "cell" and run.tags == ["toy", "msa", "scaling_facts", "16K", "seed0"]
    asked = {key: run.config[key] for key in ("profile", "system", "task", "context", "seed")}
    assert asked == {"profile": "toy", "system": "msa", "task": "scaling_facts", "context": "16K", "seed": 0}
    assert run.config["entry"]["kind"] == tree.experiment.systems["msa"].kind and run.config["made_from"]["code"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == 16 and rows[0]["question"] == "?" and rows[0]["answers"] == '["x"]'
    assert rows[0]["gold_doc_ids"] == "[0]" and rows[0]["routed_doc_ids"].startswith('{"layer2"')
    assert run.summary["accuracy"] == sum(row["accuracy"] for row in rows) / 16
    assert set(runs["report"].tables) == {"claims", "summary"}
    assert runs["report"].summary["msa/scaling_facts/16K/accuracy"] == run.summary["accuracy"]

    assert written(tree) == []
    place = str(tree.root.parent).encode()
    kept = [path for path in (tree.paths.root / "wandb").rglob("*") if path.suffix in (".wandb", ".json")]
    assert not [path for path in kept if path.parent.name != "wandb" and place in path.read_bytes()]


def test_a_checkpoint_is_an_artifact_by_digest_and_its_children_name_it(new_tree: Callable) -> None:
    tree = new_tree(**SMALL)
    for model in ("backbone", "msa"):
        tree.training(model, routed=False)
        directory = tree.paths.model(model)
        save_file({"a": np.zeros((3, 4), "float32")}, directory / "model.safetensors")
        write_seal(directory / SEAL, MadeFrom(), ["train.jsonl", "model.safetensors"])
    written(tree)
    runs = offline_runs(tree.paths.root / "wandb")
    assert runs["train/msa"].config["parameters"] == 12
    made, used = runs["train/backbone"].made["toy-backbone"], runs["train/msa"].used["toy-backbone"]
    digest = sealed(tree.paths.model("backbone"), ["model.safetensors"])["model.safetensors"].sha256
    assert made == used and made["model.safetensors"].startswith(f"sha256:{digest}?bytes=")

    shutil.rmtree(tree.paths.root / "wandb")
    written(tree, upload_bytes=10**6)
    uploaded = offline_runs(tree.paths.root / "wandb")["train/backbone"].made["toy-backbone"]
    assert uploaded == {"model.safetensors": "", "train.jsonl": ""}  # the bytes themselves, no reference


def test_a_run_that_grows_goes_on_and_is_what_a_rebuilt_one_is(small: Tree) -> None:
    directory = small.paths.model("msa")
    lines = (directory / "train.jsonl").read_text().splitlines(keepends=True)
    digest = MadeFrom().digest
    growing = directory.with_name(".msa.resume") / f"train-{digest}.jsonl"
    growing.parent.mkdir()
    seal = (directory / SEAL).read_bytes()
    (directory / SEAL).unlink()
    growing.write_text("".join(lines[:50]) + lines[50][:30])
    scores = small.paths.cell("msa", "scaling_facts", "16K", 0) / "scores.parquet"
    scores.rename(scores.with_suffix(".later"))

    following = tracker(small)
    assert following.update(is_last=False) == []  # offline, what still grows waits
    assert following.update(is_last=True) == ["train/msa", "msa/scaling_facts/16K/seed0"]
    following.mirror.lock.close()
    half = offline_runs(small.paths.root / "wandb")
    assert len(half["train/msa"].history) == 50 and half["train/msa"].summary["complete"] is False
    assert "predictions" not in half["msa/scaling_facts/16K/seed0"].tables

    growing.write_text("".join(lines[:20]))  # resumed from an earlier step: nothing is shown twice
    assert written(small) == ["train/msa"]
    growing.unlink()
    (directory / SEAL).write_bytes(seal)
    scores.with_suffix(".later").rename(scores)
    assert written(small) == ["train/msa", "msa/scaling_facts/16K/seed0"]
    grown = contents(small)
    runs = offline_runs(small.paths.root / "wandb")
    assert [row["step"] for row in runs["train/msa"].history] == list(range(200)) and runs["train/msa"].segments == 3

    shutil.rmtree(small.paths.root / "wandb")
    written(small)
    assert contents(small) == grown


def test_other_code_is_another_run(small: Tree) -> None:
    written(small)
    before = offline_runs(small.paths.root / "wandb")
    log = small.paths.model("msa") / "train.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:10]))
    write_seal(log.with_name(SEAL), MadeFrom(code={"msa.training.train": "other"}), ["train.jsonl"])
    assert written(small) == ["train/msa"]
    ids = {path.name.split("-", 3)[3] for path in (small.paths.root / "wandb").glob("offline-run-*train-msa*")}
    assert len(ids) == 2 and before["train/msa"].id in ids


def test_what_is_lost_of_what_was_not_sent_is_written_again(small: Tree) -> None:
    written(small)
    folder = small.paths.root / "wandb"
    before = contents(small)
    shutil.rmtree(next(folder.glob("offline-run-*train-msa*")))
    cut = next(folder.glob("offline-run-*seed0*/*.wandb"))
    cut.write_bytes(cut.read_bytes()[:1000])
    (folder / "offline-run-20260101_000000-half").mkdir()  # of a mirror that was killed
    assert written(small) == ["train/msa", "msa/scaling_facts/16K/seed0"]
    assert contents(small) == before
    assert len([*folder.glob("offline-run-*")]) == 2
    for path in (folder / "tracked.json", folder / ".tracked.json"):
        path.write_text(path.read_text()[:100])
    assert written(small) == ["train/msa", "msa/scaling_facts/16K/seed0"]  # as other runs: which were sent is unknown
    assert contents(small) == before


def test_disabled_imports_and_writes_nothing(
    small: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # to import it is an error
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(
        sys, "argv", ["track", "--profile", "toy", "--results", str(small.root), "--configs", str(small.configs)]
    )
    assert track.main() == 0 and "disabled" in capsys.readouterr().out
    assert not (small.paths.root / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "onlien")
    with pytest.raises(UserError, match=r"WANDB_MODE.*did you mean 'online'"):
        track.main()


def test_a_file_that_is_not_as_its_stage_left_it_waits_for_its_stage(small: Tree) -> None:
    log = small.paths.model("msa") / "train.jsonl"
    log.write_text(log.read_text() + "\n")
    following = tracker(small, follow=True)
    assert following.update(is_last=True) == ["msa/scaling_facts/16K/seed0"]
    following.mirror.lock.close()
    with pytest.raises(UserError, match=r"train\.jsonl: has .* were sealed"):
        written(small)


def online(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", address)


def test_a_server_receives_a_run_as_it_grows(small: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = small.paths.model("msa")
    lines = (directory / "train.jsonl").read_text().splitlines(keepends=True)
    growing = directory.with_name(".msa.resume") / f"train-{MadeFrom().digest}.jsonl"
    growing.parent.mkdir()
    shutil.rmtree(directory)
    with serving("receives") as server:
        online(monkeypatch, server.address)
        growing.write_text("".join(lines[:5]))
        with open(small.root / "said", "w+") as said:
            monkeypatch.setattr(sys, "stdout", said)
            following = tracker(small, is_online=True)
            for count in (5, 8):
                growing.write_text("".join(lines[:count]))
                following.update(is_last=False)
                assert not following.failure
                rows = next(rows for name, rows in server.history.items() if "train-msa" in name)
                assert [(row["_step"], row["step"]) for row in rows] == [(step, step) for step in range(count)]
    cell = next(name for name in server.configs if "scaling_facts" in name)
    assert server.configs[cell]["system"] == "msa"
    assert any(f"{cell}/media/table/predictions" in path for path in server.files)
    assert following.mirror.unsent == [] and not list((small.paths.root / "wandb").glob("offline-run-*"))


def test_a_server_that_hangs_costs_its_time_once_and_nothing_is_lost(
    small: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("hangs") as server:
        threading.Thread(target=lambda: (server.asked.wait(), monkeypatch.setattr(writer, "QUIET_S", 0.5))).start()
        online(monkeypatch, server.address)
        with open(small.root / "said", "w+") as said:
            monkeypatch.setattr(sys, "stdout", said)
            following = tracker(small, is_online=True)
            following.update(is_last=False)
            assert "did not answer within 0 s" in following.failure and server.requests
            asked = server.requests
            following.update(is_last=True)
            assert server.requests == asked
            assert (small.root / "said").read_text().count("\nwandb sync ") == 1
    assert {"train/msa", "msa/scaling_facts/16K/seed0"} == set(offline_runs(small.paths.root / "wandb"))
    assert len(following.mirror.unsent) == 2


def test_the_library_sends_nothing_of_its_own_and_lists_no_packages(small: Tree) -> None:
    assert written(small)
    import wandb

    assert not wandb.env.error_reporting_enabled()
    assert not list((small.paths.root / "wandb").rglob("requirements.txt"))


def test_what_could_not_be_sent_is_said(small: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "sync_command", lambda _: ["a.module.that.is.not"])
    with open(small.root / "said", "w+") as said:
        monkeypatch.setattr(sys, "stdout", said)
        following = tracker(small, is_online=True)
        following.update(is_last=False)
    assert following.failure.startswith("2 of 2 runs were not sent") and len(following.mirror.unsent) == 2


def test_a_library_that_fails_is_said(small: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def fail(**_: Any) -> None:
        raise wandb.Error("no service")

    monkeypatch.setattr(wandb, "init", fail)
    following = tracker(small)
    assert following.update(is_last=True) == [] and following.failure == "train/msa: not written: no service"
    with pytest.raises(NotMirrored):
        following.mirror.write(next(iter(sources(small.experiment, small.paths))))


def test_the_sync_command_is_quoted() -> None:
    directories = ["with a space/wandb/offline-run-1", "it's/wandb/offline-run-2"]
    assert shlex.split(send_with(directories)) == ["wandb", "sync", *directories]


def test_nothing_yet_writes_nothing(new_tree: Callable) -> None:
    tree = new_tree()
    assert written(tree) == []
    assert not list((tree.paths.root / "wandb").glob("offline-run-*"))


def test_two_results_directories_are_different_runs(small: Tree, tmp_path: Path) -> None:
    other = Tree(tmp_path / "other", small.configs)
    shutil.copytree(small.paths.root, other.paths.root)
    assert Mirror(small.paths.root, "toy").word != Mirror(other.paths.root, "toy").word
