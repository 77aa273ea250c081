"""The Weights & Biases mirror, offline: its files, what they hold, the sync command, and calling it again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.tables import write_table
from reports.summarise import summarise
from reports.track import sync_command, track


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default, whatever the caller's environment says."""
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_offline_runs_hold_the_data_and_are_written_once(new_tree: Callable) -> None:
    tree = new_tree(tasks={"scaling_facts": 16}, contexts=["16K", "1M"], systems=["msa"])
    tree.grow()
    written, directories = track(tree.evidence())
    assert written == ["train-backbone", "train-reader", "train-msa", "train-embedder", "summary"]
    assert [Path(directory).parent for directory in directories] == [tree.paths.root / "wandb"] * 5
    assert all(Path(directory).name.startswith("offline-run-") for directory in directories)
    data = {
        directory.split("-toy-")[1].rsplit("-", 1)[0]: next(Path(directory).glob("*.wandb")).read_bytes()
        for directory in directories
    }
    assert b"lm_loss" in data["train-msa"] and b"recall@1/layer3" in data["train-msa"]
    assert b"msa/scaling_facts/1M/accuracy" in data["summary"]
    media = next(Path(directory) for directory in directories if "summary" in directory) / "files" / "media"
    assert {path.name.split("_0_")[0] for path in (media / "table").iterdir()} == {"summary", "claims"}
    assert "scaling" in {path.name.split("_0_")[0] for path in (media / "images" / "figures").iterdir()}

    assert track(tree.evidence()) == ([], directories)

    tree.cell("msa", "scaling_facts", "16K", 0.2)
    evidence = tree.evidence()
    write_table("summary", summarise(evidence), tree.paths.summary)
    again, current = track(evidence)
    assert again == ["summary"]
    assert len(current) == 5 and len(set(current) - set(directories)) == 1


def test_the_sync_command_takes_the_runs(new_tree: Callable) -> None:
    tree = new_tree(models=["backbone", "msa", "reader"], systems=["closed_book"], tasks={"scaling_facts": 8})
    tree.training("backbone", routed=False)
    evidence = tree.evidence()
    tree.paths.summary.unlink()
    written, directories = track(evidence)
    assert written == ["train-backbone"]
    assert sync_command(directories) == ["wandb", "sync", *directories]
    done = subprocess.run(
        [sys.executable, "-m", *sync_command(directories), "--dry-run"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "Would sync 1 run" in done.stdout + done.stderr


def test_nothing_yet_writes_nothing(new_tree: Callable) -> None:
    tree = new_tree()
    evidence = tree.evidence()
    tree.paths.summary.unlink()
    assert track(evidence) == ([], [])
    assert not (tree.paths.root / "wandb").exists()


def test_a_disabled_mirror_leaves_no_directory_to_send(new_tree: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tree = new_tree(models=["backbone", "msa", "reader"], systems=["closed_book"], tasks={"scaling_facts": 8})
    tree.training("backbone", routed=False)
    evidence = tree.evidence()
    tree.paths.summary.unlink()
    assert track(evidence) == (["train-backbone"], [])
