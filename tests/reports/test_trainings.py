"""Repeated trainings: the derived configuration, what is kept, and the spread beside a claim."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from msa.training.recipe import Optimizer
from msa.training.samples import Phase
from msa_base import meaning, validate
from msa_base.errors import UserError
from msa_base.load import load
from reports import trainings
from reports.claims import find
from reports.published.reference import read_reference
from tasks.stages.samples import SampleSpec
from tasks.stages.vocabulary import WordsSpec


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty table in place of the committed one."""
    path = tmp_path / "trainings.csv"
    path.write_text(",".join(trainings.COLUMNS) + "\n")
    monkeypatch.setattr(trainings, "SCORES", path)
    return path


def grow_scaling(tree) -> None:
    tree.prepare("scaling_facts")
    for context in ("16K", "1M"):
        tree.cell("msa", "scaling_facts", context, 0.9)


def test_a_claim_on_a_trained_model_says_how_trainings_differ(new_tree: Callable, scores: Path) -> None:
    tree = new_tree()
    grow_scaling(tree)
    evidence = tree.evidence()

    def said() -> str:
        return next(it for it in find(evidence, read_reference()) if it.name == "scaling_loss_to_1M").trainings

    assert said() == "not measured"
    digest = trainings.recipe(evidence.experiment, "msa")
    for seed, largest in ((1, 0.9), (2, 0.8), (3, 0.7)):
        found = [(digest, seed, "msa", "scaling_facts", "16K", "accuracy", 1.0, 64)]
        trainings.keep([*found, (digest, seed, "msa", "scaling_facts", "1M", "accuracy", largest, 64)])
    assert said() == "10 to 30 % over 3 trainings, mean 20, standard deviation 10"
    trainings.keep([(digest, 9, "msa", "scaling_facts", "1M", "accuracy", 0.1, 64)])  # one side alone is no figure
    trainings.keep([("other recipe", seed, "msa", "scaling_facts", "1M", "accuracy", 0.1, 64) for seed in (7, 8)])
    assert "over 3 trainings" in said()


def test_a_recipe_is_everything_but_its_seed(new_tree: Callable, tmp_path: Path) -> None:
    base = new_tree().experiment
    chosen = {"systems": ["msa"], "tasks": ["scaling_facts"], "contexts": ["16K", "1M"]}
    name = trainings.derive(base, 5, chosen, tmp_path / "derived")
    other = load(name, tmp_path / "derived")
    assert other.models["msa"].params["seed"] == other.models["backbone"].params["seed"] == 5
    assert {params["seed"] for params in other.profile.samples.values()} == {5}
    assert (other.profile.systems, list(other.profile.tasks)) == (["msa"], ["scaling_facts"])
    assert trainings.recipe(other, "msa") == trainings.recipe(base, "msa") != trainings.recipe(base, "rag_dense")
    assert trainings.recipe(base, "rag_bm25") is not None  # it reads with a trained reader
    assert "_models/backbone" not in other.shared and "_data/_samples/short" not in other.shared
    assert "_data/tokenizer" in other.shared
    changed = trainings.derive(base, 5, {**chosen, "systems": ["msa"]}, tmp_path / "changed")
    path = tmp_path / "changed" / "models.yaml"
    path.write_text(path.read_text().replace("steps: 130", "steps: 131"))
    assert trainings.recipe(load(changed, tmp_path / "changed"), "msa") != trainings.recipe(base, "msa")


def test_another_default_is_another_recipe(new_tree: Callable, tmp_path: Path) -> None:
    base = new_tree().experiment
    digest = trainings.recipe(base, "msa")
    name = trainings.derive(base, 5, {"systems": ["msa"], "tasks": ["scaling_facts"], "contexts": ["16K"]}, tmp_path)

    def with_default(record: type, key: str, value: object) -> str | None:
        """The recipe where a record has another default."""
        field = record.__dataclass_fields__[key]
        kept = field.default
        try:
            field.default = value
            validate.adapter.cache_clear()
            return trainings.recipe(base, "msa")
        finally:
            field.default = kept
            validate.adapter.cache_clear()

    assert with_default(SampleSpec, "document_tokens", 97) != digest
    assert with_default(Phase, "aux_weight", 0.2) != digest
    assert with_default(Optimizer, "clip", 2.0) != digest
    assert with_default(WordsSpec, "pieces", 601) != digest
    assert with_default(SampleSpec, "keyed_answers", True) != digest
    assert trainings.recipe(base, "msa") == digest

    path = tmp_path / "profiles" / f"{name}.yaml"
    path.write_text(path.read_text().replace("bank_tokens: 800", "bank_tokens: 800\n    document_tokens: 96"))
    assert "document_tokens: 96" in path.read_text()
    assert trainings.recipe(load(name, tmp_path), "msa") == digest  # a default that is written out


def test_a_key_that_is_off_says_nothing_and_a_zero_does() -> None:
    entry = {"a": None, "b": False, "c": [], "d": {"e": None}, "f": 0, "g": [{"h": False, "i": 0.5}], "j": True}
    assert meaning.stated(entry) == {"f": 0, "g": [{"i": 0.5}], "j": True}


def test_the_command_trains_each_seed_once_and_keeps_what_it_scored(
    new_tree: Callable, scores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tree, started = new_tree(), []

    def workflow(command: list[str], check: bool) -> None:
        from tests.reports.conftest import Tree

        started.append(command)
        options = dict(zip(command[4::2], command[5::2], strict=True))
        grow_scaling(Tree(Path(options["--results"]), Path(options["--configs"]), options["--profile"]))

    monkeypatch.setattr(subprocess, "run", workflow)
    given = ["--profile", "toy", "--results", str(tree.root), "--configs", str(tree.configs)]
    chosen = ["--systems", "msa", "--tasks", "scaling_facts", "--seeds", "3", "4"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["trainings", *given, *chosen])
        trainings.main()
    assert len(started) == 2 and capsys.readouterr().out.count("kept already") == 2
    kept = trainings.read_scores()
    assert list(kept.seed) == [3, 3, 4, 4] and set(kept.context) == {"16K", "1M"} and set(kept.n) == {64}
    monkeypatch.setattr(sys, "argv", ["trainings", *given, *chosen, "--systems", "mas"])
    with pytest.raises(UserError, match="did you mean 'msa'"):
        trainings.main()


@pytest.mark.parametrize("broken", ["", "recipe,seed\na,1\n", "HEADER\na,1,msa,t,16K,accuracy,1.5,3\n"])
def test_a_broken_table_is_named(scores: Path, broken: str) -> None:
    scores.write_text(broken.replace("HEADER", ",".join(trainings.COLUMNS)))
    with pytest.raises(UserError, match=r"trainings\.csv: is no table of trainings"):
        trainings.read_scores()


def test_the_committed_scores_are_readable() -> None:
    assert list(trainings.read_scores().columns) == trainings.COLUMNS
