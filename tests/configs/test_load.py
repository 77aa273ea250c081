"""Configuration: what is shipped loads; what is wrong names file, key and mend."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import UserError
from configs.load import DIRECTORY, LatencySpec, SystemSpec, build, load, module_name

Edit = Callable[[str, Callable[[Any], None]], None]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the shipped configuration to spoil."""
    return Path(shutil.copytree(DIRECTORY, tmp_path / "configs", ignore=shutil.ignore_patterns("*.py", "__pycache__")))


@pytest.fixture
def edit(directory: Path) -> Edit:
    """Change one file of the copy through a function on its content."""

    def change(name: str, function: Callable[[Any], None]) -> None:
        path = directory / f"{name}.yaml"
        content = yaml.safe_load(path.read_text())
        function(content)
        path.write_text(yaml.safe_dump(content))

    return change


@pytest.mark.parametrize("profile", sorted(path.stem for path in (DIRECTORY / "profiles").glob("*.yaml")))
def test_every_shipped_profile_loads(profile: str) -> None:
    experiment = load(profile)
    assert experiment.profile.systems


def set_key(*path: Any) -> Callable[[Any], None]:
    """A function that sets the value at the end of a path of keys."""

    def function(content: Any) -> None:
        *parents, key, value = path
        for parent in parents:
            content = content[parent]
        content[key] = value

    return function


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "profiles/tiny",
            set_key("contxts", ["16K"]),
            "profiles/tiny.yaml: unknown key 'contxts'; did you mean 'contexts'?",
        ),
        ("profiles/tiny", set_key("seeds", "0"), "profiles/tiny.yaml: key 'seeds' must be list[int], found '0'"),
        ("profiles/tiny", set_key("seeds", [True]), "profiles/tiny.yaml: key 'seeds' must be list[int], found [True]"),
        (
            "profiles/tiny",
            set_key("systems", ["rag_bm52"]),
            "systems: unknown name 'rag_bm52'; did you mean 'rag_bm25'?",
        ),
        ("profiles/tiny", set_key("contexts", ["17K"]), "contexts: unknown name '17K'; did you mean '1"),
        ("profiles/tiny", set_key("tasks", {"two_hops": 1}), "tasks: unknown name 'two_hops'; did you mean 'two_hop'?"),
        ("profiles/tiny", set_key("latency", "task", "twohop"), "latency: task: unknown name 'twohop'"),
        ("profiles/tiny", set_key("latency", "n", 1), "latency: unknown key 'n'"),
        (
            "systems",
            set_key("systems", "rag_bm25", "modl", "reader"),
            "systems.yaml: systems: rag_bm25: unknown key 'modl'; did you mean 'model'?",
        ),
        (
            "systems",
            set_key("systems", "rag_bm25", "model", "raeder"),
            "systems: rag_bm25: model: unknown name 'raeder'; did you mean 'reader'?",
        ),
        ("systems", set_key("systems", "rag_dense", "index", "dens"), "systems: rag_dense: index: unknown name 'dens'"),
        ("systems", set_key("system", {}), "systems.yaml: unknown key 'system'"),
        (
            "systems",
            set_key("systems", "rag_bm25", "kind", None),
            "systems: rag_bm25: key 'kind' must be str, found None",
        ),
        ("systems", set_key("systems", "rag_bm25", []), "systems: rag_bm25: expected a mapping, found list"),
        ("profiles/tiny", set_key("seeds", []), "profiles/tiny.yaml: key 'seeds' is empty"),
        (
            "systems",
            set_key("systems", "_data", {"kind": "bm25", "title": "x"}),
            "systems: name '_data' cannot be a directory's",
        ),
        ("systems", set_key("indexes", "bank", "model", "mas"), "systems: msa: index: model: unknown name 'mas'"),
        (
            "profiles/tiny",
            set_key("systems", ["msa", {"rag": "rag_bm52"}]),
            "systems: unknown name 'rag_bm52'; did you mean 'rag_bm25'?",
        ),
        ("profiles/tiny", set_key("models", ["backbone", {"_data": "msa"}]), "models: name '_data' cannot be a directory's"),
        ("profiles/tiny", set_key("indexes", [{"bank": "bnak"}]), "indexes: unknown name 'bnak'; did you mean 'bank'?"),
        ("profiles/tiny", set_key("limits", {"host_gbs": 1}), "limits: unknown key 'host_gbs'; did you mean 'host_gb'?"),
        ("profiles/tiny", set_key("limits", {"cell_hours": 0}), "limits: key 'cell_hours' must be above 0, found 0"),
        ("profiles/tiny", set_key("hardware", "H20"), "hardware: unknown name 'H20'; did you mean 'H200'?"),
        ("profiles/paper", set_key("published", "context", "101M"), "published: context: unknown name '101M'"),
        ("models", set_key("msa", "after", "backbon"), "msa: after: unknown name 'backbon'; did you mean 'backbone'?"),
        ("models", set_key("msa", "samples", ["shrt"]), "msa: samples: unknown name 'shrt'; did you mean 'short'?"),
        (
            "tasks",
            set_key("tasks", "two_hop", "corpus", "chain"),
            "two_hop: corpus: unknown name 'chain'; did you mean 'chains'?",
        ),
    ],
)
def test_a_mistake_names_file_key_and_mend(
    directory: Path, edit: Edit, file: str, change: Callable[[Any], None], message: str
) -> None:
    edit(file, change)
    with pytest.raises(UserError) as raised:
        load("paper" if file == "profiles/paper" else "tiny", directory)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_entry_may_go_by_another_name(directory: Path, edit: Edit) -> None:
    edit("profiles/tiny", set_key("systems", ["oracle", {"full_attention": "full_attention_8k"}]))
    edit("profiles/tiny", set_key("main", ["full_attention"]))
    edit("profiles/tiny", set_key("models", ["backbone", "msa", {"reader": "msa"}]))
    edit("profiles/tiny", set_key("indexes", [{"bank": "bank_stored"}]))
    experiment = load("tiny", directory)
    assert experiment.profile.systems == ["oracle", "full_attention"]
    assert experiment.profile.raced("main") == ["full_attention"]
    assert experiment.profile.raced("all") == experiment.profile.systems
    assert experiment.profile.raced("oracle,msa") == ["oracle", "msa"]
    assert experiment.systems["full_attention"] == experiment.systems["full_attention_8k"]
    assert experiment.profile.models == ["backbone", "msa", "reader"]
    assert experiment.models["reader"] == experiment.models["msa"]
    assert experiment.indexes["bank"].params["key_dtype"] == "bfloat16"


def test_a_missing_key_is_named(directory: Path, edit: Edit) -> None:
    edit("profiles/tiny", lambda content: content.pop("seeds"))
    with pytest.raises(UserError, match="key 'seeds' is missing; add it"):
        load("tiny", directory)


def test_an_unknown_profile_names_those_there(directory: Path) -> None:
    with pytest.raises(UserError, match=r"no such file .there: .*tiny"):
        load("tyni", directory)


@pytest.mark.parametrize("content", ["a: [", "", "- a\n", "a: 1\n b: 2"])
@pytest.mark.parametrize("file", ["systems", "models", "contexts", "profiles/tiny"])
def test_a_broken_file_is_one_line(directory: Path, file: str, content: str) -> None:
    (directory / f"{file}.yaml").write_text(content)
    with pytest.raises(UserError) as raised:
        load("tiny", directory)
    assert f"{file}.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_whole_numbers_pass_for_floats_and_the_reverse_does_not() -> None:
    assert build(LatencySpec, {"task": "a", "questions": 3}, "x").questions == 3
    with pytest.raises(UserError, match=r"'questions' must be int, found 3\.0"):
        build(LatencySpec, {"task": "a", "questions": 3.0}, "x")
    assert build(SystemSpec, {"kind": "a", "title": "b", "max_questions": None}, "x").max_questions is None


def test_a_kind_is_a_module_of_the_package_or_a_dotted_one() -> None:
    assert module_name("bm25", "baselines") == "baselines.bm25"
    assert module_name("mypackage.mysystem", "baselines") == "mypackage.mysystem"


def test_the_command_exits_2_with_one_line(directory: Path, edit: Edit) -> None:
    edit("profiles/tiny", set_key("sedes", [0]))
    command = [sys.executable, "-m", "configs.load", "--profile", "tiny", "--configs", str(directory)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=DIRECTORY.parent)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: ")
