"""The saved workspace and the sweeps: what they name is there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import wandb
import yaml

from msa_base.errors import UserError
from msa_base.load import load
from msa_base.paths import DIRECTORY
from reports import sweep, workspace
from tests.reports.conftest import Tree
from tests.reports.wandb_files import offline_runs

SWEEPS = sorted((DIRECTORY / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_keys_of_a_sweep_exist(path: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    command = content["command"]
    assert command[1:4] == ["python", "-m", "reports.sweep"] and command[-1] == "${args}"
    profile = command[command.index("--profile") + 1]
    for key, parameter in content["parameters"].items():
        for value in parameter["values"]:
            sweep.plant(DIRECTORY, tmp_path / "configs", sweep.parse([f"--{key}={value}"]))
            file, entry, *_ = key.split(".")
            assert entry in getattr(load(profile, tmp_path / "configs"), file)
    system, task, context, _ = content["metric"]["name"].split("/")
    asked = load(profile).profile
    assert system in asked.systems and task in asked.tasks and context in asked.contexts


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--models.msa.params.shadrs=1", "did you mean 'shards'"),
        ("--modles.msa.params.seed=1", "modles.*did you mean 'models'"),
        ("--models.msa.kind.seed=1", "unknown.*seed"),
        ("seed=1", "not a setting"),
        ("--models.msa.params.seed", "not a setting"),
    ],
)
def test_a_setting_that_is_none_is_said(word: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        sweep.plant(DIRECTORY, tmp_path / "configs", sweep.parse([word]))


def test_a_trial_shows_its_settings_and_scores(new_tree, monkeypatch: pytest.MonkeyPatch) -> None:
    made = new_tree(tasks={"scaling_facts": 8}, contexts=["16K"], models=["backbone", "msa", "reader"], systems=["msa"])

    def reproduce(profile: str, results: Path, configs: Path) -> None:
        tree = Tree(results, configs)
        assert tree.experiment.models["msa"].params["router"]["aux_temperature"] == 0.2
        tree.prepare("scaling_facts")
        tree.cell("msa", "scaling_facts", "16K", 0.5)
        tree.evidence()

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sweep, "reproduce", reproduce)
    key = "models.msa.params.router.aux_temperature"
    places = ["--profile", "toy", "--results", str(made.root), "--configs", str(made.configs)]
    monkeypatch.setattr(sys, "argv", ["sweep", *places, f"--{key}=0.2"])
    sweep.main()
    wandb.teardown()
    (folder,) = made.root.glob("_sweeps/*/wandb")
    (run,) = offline_runs(folder).values()
    assert run.config[key] == 0.2 and 0 < run.history[0]["msa/scaling_facts/16K/accuracy"] < 1


def test_a_workspace_names_what_runs_hold() -> None:
    made = workspace.workspace(load("tiny"), "team", "msa-bench")
    shown = made._to_model().model_dump_json()
    assert [section.name for section in made.sections] == ["Training", "Workflow", "Cells", "Indexes", "Report"]
    for name in ("lm_loss", "left_s", "device_used_bytes", "accuracy", "build_s", "figures/scaling", '"tiny"'):
        assert name in shown
