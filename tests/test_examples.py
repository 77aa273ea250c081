"""What examples/ holds runs: the scaffold makes a baseline and a task of it, and answers from elsewhere are scored."""

from __future__ import annotations

import importlib
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from msa_base.errors import UserError
from msa_base.load import load
from msa_base.records import CorpusView, Document, Overlay, Question
from msa_base.scaffold import KINDS, begin
from msa_base.tables import read_predictions
from tasks.stages.export import export
from tests.baselines.conftest import Workplace, fakes, workplace  # noqa: F401 (fixtures)
from tests.tasks.conftest import Maker, make, prose, tokenizer  # noqa: F401 (fixtures)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What of a checkout a scaffold reads and writes."""
    for folder in ("configs", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for kind in KINDS.values():
        (tmp_path / kind.room).mkdir()
    return tmp_path


@pytest.fixture
def imported(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Imports a file of the checkout as a module of its room."""

    def take(room: str, name: str):
        package = importlib.import_module(room)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(checkout / room)])
        monkeypatch.delitem(sys.modules, f"{room}.{name}", raising=False)
        return importlib.import_module(f"{room}.{name}")

    return take


def test_a_new_baseline_is_one_short_file_and_one_entry_and_answers(checkout: Path, imported: Callable) -> None:
    file, *configs = begin("baseline", "word_match", checkout)
    assert len(file.read_text().splitlines()) < 40
    assert [path.name for path in configs] == ["systems.yaml", "smoke.yaml"]
    experiment = load("smoke", checkout / "configs")
    assert experiment.systems["word_match"].title == "Word match" and "word_match" in experiment.profile.systems
    assert (checkout / "configs" / "systems.yaml").read_text().count("\n") == (
        ROOT / "configs" / "systems.yaml"
    ).read_text().count("\n") + 1
    system = imported("baselines", "word_match").make(experiment.systems["word_match"], None)
    assert type(system).__name__ == "WordMatch"
    view = CorpusView([Document(1, "a cat", 2)], {"o": Overlay("o", (Document(2, "the dog is red", 4),))})
    (answer,) = system.answer([Question("q", "is the dog red", "", 4, "o")], view)
    assert (answer.text, answer.cited_doc_ids) == ("the dog is red", [2])


def test_a_new_task_is_one_short_file_and_one_entry_and_asks(checkout: Path, imported: Callable, make: Maker) -> None:  # noqa: F811
    from tasks import scaling

    file, *_ = begin("task", "moving_day", checkout)
    assert len(file.read_text().splitlines()) < 40
    experiment = load("smoke", checkout / "configs")
    assert experiment.tasks["moving_day"].kind == "moving_day" and experiment.profile.tasks["moving_day"] == 16
    tail = make.tail(scaling, "facts", 4096)
    request = make.task("moving_day", tail, 6, {"4K": 4096}, replicates=1, head_tokens=2000)
    (cell,) = imported("tasks", "moving_day").prepare(request)
    assert len(cell.questions) == 6
    documents = {document.doc_id: document for overlay in cell.overlays.values() for document in overlay}
    for gold in cell.gold:
        assert gold.answers[0] in documents[gold.gold_doc_ids[0]].text


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        ("baseline", "Two Words", "NAME=Two Words: cannot be a module's"),
        ("baseline", "class", "cannot be a module's"),
        ("baseline", "rag_bm25", "key 'systems' has an entry 'rag_bm25' already"),
        ("task", "taken", "exists already; choose another name"),
        ("task", "two_hop", "key 'tasks' has an entry 'two_hop' already"),
    ],
)
def test_a_name_that_is_taken_or_none_changes_nothing(checkout: Path, what: str, name: str, message: str) -> None:
    (checkout / "tasks" / "taken.py").write_text("")
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message.replace("'", ".")):
        begin(what, name, checkout)
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == before


def test_a_profile_of_another_form_changes_nothing(checkout: Path) -> None:
    path = checkout / "configs" / "profiles" / "smoke.yaml"
    path.write_text(path.read_text().replace("systems: [full_attention, ", "systems:\n  [full_attention, "))
    with pytest.raises(UserError, match=r"smoke\.yaml: has not one line like .*write the entry by hand"):
        begin("baseline", "word_match", checkout)
    assert not (checkout / "baselines" / "word_match.py").exists()


def test_answers_from_elsewhere_follow_their_example(
    workplace: Workplace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, answers = tmp_path / "exported" / "needles" / "1K", tmp_path / "answers" / "needles" / "1K.jsonl"
    export(workplace.paths, "prose", "needles", "1K", folder)
    monkeypatch.setattr(sys, "argv", ["answer_elsewhere.py", str(folder), str(answers)])
    runpy.run_path(str(ROOT / "examples" / "answer_elsewhere.py"), run_name="__main__")
    entry = yaml.safe_load((ROOT / "configs" / "systems.yaml").read_text())["systems"]["external"]
    workplace.systems["systems"]["external"] = entry
    workplace.write_configs()
    monkeypatch.chdir(tmp_path)
    assert workplace.run("external") == 0
    found = read_predictions(workplace.paths.cell("external", "needles", "1K", 0) / "predictions.jsonl")
    assert len(found) == 9 and all(answer.status == "ok" and answer.cited_doc_ids for answer in found)


def test_the_guide_leads_to_the_examples() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    for name, kind in KINDS.items():
        assert f"](examples/{kind.example}.py)" in guide and f"make new-{name} NAME=" in guide
