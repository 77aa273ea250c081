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

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError
from msa_base.kinds import import_kind, module_name, trains
from msa_base.load import load
from msa_base.paths import DIRECTORY
from msa_base.specs import LatencySpec, SystemSpec
from msa_base.validate import build

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


def test_the_command_line_may_name_the_data() -> None:
    parser = experiment_parser(None)
    assert open_experiment(parser.parse_args(["--profile", "qa"]))[0].profile.data == "data"
    assert open_experiment(parser.parse_args(["--profile", "qa", "--data", "/sets"]))[0].profile.data == "/sets"


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
        ("profiles/tiny", set_key("seeds", "0"), "profiles/tiny.yaml: key 'seeds' must be a valid array, found '0'"),
        (
            "profiles/tiny",
            set_key("seeds", [True]),
            "profiles/tiny.yaml: key 'seeds[0]' must be a valid integer, found True",
        ),
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
            "systems: rag_bm25: key 'kind' must be a valid string, found None",
        ),
        ("systems", set_key("systems", "rag_bm25", []), "systems: rag_bm25: expected a mapping, found list"),
        ("profiles/tiny", set_key("seeds", []), "profiles/tiny.yaml: key 'seeds' is empty"),
        (
            "systems",
            set_key("systems", "_data", {"kind": "bm25", "title": "x"}),
            "systems: name '_data' cannot be a directory's",
        ),
        (
            "systems",
            set_key("indexes", "bank", "model", "mas"),
            "indexes: bank: model: unknown name 'mas'; did you mean 'msa'?",
        ),
        (
            "profiles/tiny",
            set_key("systems", ["msa", {"rag": "rag_bm52"}]),
            "systems: unknown name 'rag_bm52'; did you mean 'rag_bm25'?",
        ),
        (
            "profiles/tiny",
            set_key("models", ["backbone", {"_data": "msa"}]),
            "models[1]: name '_data' cannot be a directory's",
        ),
        ("profiles/tiny", set_key("indexes", [{"bank": "bnak"}]), "indexes: unknown name 'bnak'; did you mean 'bank'?"),
        (
            "profiles/tiny",
            set_key("limits", {"host_gbs": 1}),
            "limits: unknown key 'host_gbs'; did you mean 'host_gb'?",
        ),
        (
            "profiles/tiny",
            set_key("limits", {"cell_hours": 0}),
            "limits: key 'cell_hours' must be greater than 0, found 0",
        ),
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
    assert experiment.profile.selected_systems("main") == ["full_attention"]
    assert experiment.profile.selected_systems("all") == experiment.profile.systems
    assert experiment.profile.selected_systems("oracle,msa") == ["oracle", "msa"]
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
    with pytest.raises(UserError, match=r"'questions' must be a valid integer, found 3\.0"):
        build(LatencySpec, {"task": "a", "questions": 3.0}, "x")
    assert build(SystemSpec, {"kind": "a", "title": "b", "max_questions": None}, "x").max_questions is None


def test_a_kind_is_a_module_of_the_package_or_a_dotted_one() -> None:
    assert module_name("bm25", "baselines") == "baselines.bm25"
    assert module_name("mypackage.mysystem", "baselines") == "mypackage.mysystem"


@pytest.mark.parametrize("kind", ["../../etc", ".", "..", "a.", ".a", "a b.c", "os.path/x", "baselines..bm25"])
def test_a_kind_that_is_no_name_is_said_in_one_line(kind: str) -> None:
    assert not trains(kind)
    with pytest.raises(UserError, match=r"x: kind '.*': there is no module") as raised:
        import_kind(kind, "baselines", "x")
    assert "\n" not in str(raised.value)


def test_the_command_exits_2_with_one_line(directory: Path, edit: Edit) -> None:
    edit("profiles/tiny", set_key("sedes", [0]))
    command = [sys.executable, "-m", "msa_base.check", "--profile", "tiny", "--configs", str(directory)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=DIRECTORY.parent)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: ")


@pytest.mark.parametrize("file", ["contexts", "tasks", "systems", "models", "profiles/tiny"])
@pytest.mark.parametrize("content", [b"a: caf\xe9", b"[" * 1500, b"a: 1\na: 2", b"1: 2", b"a: !!python/none x", None])
def test_what_is_no_configuration_is_one_line(directory: Path, file: str, content: bytes | None) -> None:
    path = directory / f"{file}.yaml"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load("tiny", directory)
    assert f"{file}.yaml" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("systems", set_key("indexes", "x"), "systems.yaml: indexes: expected a mapping, found str"),
        ("systems", set_key("systems", 3), "systems.yaml: systems: expected a mapping, found int"),
        ("tasks", set_key("corpora", "x"), "tasks.yaml: corpora: expected a mapping, found str"),
        ("tasks", set_key("tasks", 3), "tasks.yaml: tasks: expected a mapping, found int"),
        ("tasks", set_key("tasks", "two_hop", "role", "multihop"), "key 'role' must be .*did you mean 'multi_hop'"),
        ("contexts", set_key("16K", 0), "key '16K' must be greater than 0, found 0"),
        ("contexts", set_key("16K", True), "key '16K' must be a valid integer, found True"),
        ("profiles/tiny", set_key("seeds", [-1]), r"key 'seeds\[0\]' must be greater than or equal to 0, found -1"),
        ("profiles/tiny", set_key("seeds", [2**70]), r"key 'seeds\[0\]' must be less than"),
        ("profiles/tiny", set_key("seeds", [0, 0]), "seeds: '0' is named twice"),
        ("profiles/tiny", set_key("systems", ["msa", "msa"]), "systems: 'msa' is named twice"),
        ("profiles/tiny", set_key("contexts", ["32K", "16K"]), "contexts: .*smallest first"),
        ("profiles/tiny", set_key("tasks", "two_hop", 0), "tasks: key 'two_hop' must be greater than 0"),
        ("profiles/tiny", set_key("latency", "questions", -1), "latency: key 'questions' must be greater than 0"),
        ("profiles/tiny", set_key("latency", "threads", 0), "latency: key 'threads' must be greater than 0"),
        ("systems", set_key("systems", "msa", "max_questions", 0), "msa: key 'max_questions' must be greater than 0"),
        ("profiles/tiny", set_key("limits", "cell_hours", float("nan")), "key 'cell_hours' must be a finite number"),
        ("profiles/tiny_100m", set_key("extends", "tinny"), "extends: unknown name 'tinny'; did you mean 'tiny'"),
        ("profiles/tiny", set_key("extends", "tiny_100m"), "key 'extends': tiny -> tiny_100m -> tiny is a loop"),
    ],
)
def test_what_cannot_be_meant_is_named(
    directory: Path, edit: Edit, file: str, change: Callable[[Any], None], message: str
) -> None:
    edit(file, change)
    with pytest.raises(UserError, match=message):
        load(Path(file).stem if "profiles/" in file else "tiny", directory)


def test_an_extending_profile_replaces_keys_and_shares_what_is_equal(directory: Path) -> None:
    child = {"extends": "tiny", "title": "child", "tasks": {"two_hop": 4}, "latency": {"task": "two_hop"}}
    child["samples"] = {"long": {"bank_tokens": 9000, "banks": 1, "questions": 1}}
    (directory / "profiles" / "child.yaml").write_text(yaml.safe_dump(child))
    tiny, experiment = load("tiny", directory), load("child", directory)
    assert experiment.profile.tasks == {"two_hop": 4} and experiment.profile.contexts == tiny.profile.contexts
    assert experiment.profile.latency.questions == tiny.profile.latency.questions
    assert experiment.profile.samples["short"] == tiny.profile.samples["short"]
    # what is made of the changed samples, and nothing else, is the child's own
    assert {"_models/backbone", "_models/reader", "_data/_samples/short", "_data/tokenizer"} < set(experiment.shared)
    assert not {"_models/msa", "_data/_samples/long"} & set(experiment.shared)
    assert set(experiment.shared.values()) == {"tiny"} and tiny.shared == {}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB.encode(), "its aliases make more than"),
        (b"a: &a [*a]", "its aliases make more than"),
        ("seeds: [0]".encode("utf-16"), "save it as UTF-8"),
        ("title: caf\u00e9".encode("latin-1"), "save it as UTF-8"),
        (b"seeds: [010]", "010 is no number in decimal"),
        (b"seeds: [1:30]", "1:30 is no number in decimal"),
        (b"seeds: [0x10]", "0x10 is no number in decimal"),
        (b"#" * (2**22 + 1), "bytes, 4,194,304 at most"),
        (b"seeds: [" + b"9" * 5000 + b"]", "not valid YAML"),
    ],
)
def test_what_yaml_allows_and_nobody_means_is_refused(directory: Path, content: bytes, message: str) -> None:
    (directory / "profiles" / "tiny.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load("tiny", directory)
    assert "profiles/tiny.yaml: " in str(raised.value) and "\n" not in str(raised.value)


def test_a_byte_order_mark_is_no_mistake(directory: Path) -> None:
    path, before = directory / "profiles" / "tiny.yaml", load("tiny", directory)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load("tiny", directory) == before


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_configuration(directory: Path, device: str) -> None:
    (directory / "systems.yaml").unlink()
    (directory / "systems.yaml").symlink_to(device)
    with pytest.raises(UserError, match=r"systems\.yaml: cannot be read as text: is no file"):
        load("tiny", directory)
