"""What code a result depends on: names followed through modules, and the systems that an edit reaches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from msa_base import closure
from msa_base.load import load
from msa_base.stages import Stages

ROOT = Path(__file__).parents[2]
FILES = {
    "__init__.py": '"""A package."""\n',
    "start.py": '''"""Starts."""
from plug import table
from plug.deep import inner as renamed
from plug.shared import LIMIT

def answer(x):
    """Docstring."""
    from plug.lazy import late  # a comment
    return late(x) + table.lookup(x) + renamed(x) + LIMIT

def other():
    return table.unread()
''',
    "table.py": """import plug.effect
ENTRIES = {}

def register(function):
    ENTRIES[function.__name__] = function

@register
def registered():
    return 1

def lookup(x):
    return ENTRIES[x]

def unread():
    return 2
""",
    "deep.py": "from plug.deeper import inner\n",
    "deeper.py": "def inner(x):\n    return x\n\ndef beside(x):\n    return x\n",
    "shared.py": "LIMIT = 3\nUNUSED = 4\n",
    "lazy.py": 'SOURCE = "kernel.c"\n\ndef late(x):\n    return SOURCE\n',
    "kernel.c": "int f() { return 1; }\n",
    "effect.py": "print(1)\n",
    "apart.py": "def answer(x):\n    return x\n",
}


@pytest.fixture
def reread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what was read of the sources; nothing is kept outside the test's folder."""
    monkeypatch.setattr(closure, "KEPT", tmp_path / "closures.json")

    def forget() -> None:
        for remembered in (closure._root, closure.source, closure.read, closure.read_cache):
            remembered.cache_clear()

    forget()
    yield forget
    monkeypatch.undo()
    forget()


@pytest.fixture
def plug(tmp_path: Path, reread: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Writes a small package, with some text replaced, and gives the closure of its start."""
    for name, text in FILES.items():
        path = tmp_path / "plug" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))

    def code(name: str = "start.py", old: str = "", new: str = "") -> dict[str, str]:
        assert old in FILES[name]
        (tmp_path / "plug" / name).write_text(FILES[name].replace(old, new) if old else FILES[name])
        reread()
        found = closure.code("plug.start:answer")
        (tmp_path / "plug" / name).write_text(FILES[name])
        return found

    return code


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        ("start.py", "+ LIMIT", "- LIMIT", "plug.start"),
        ("table.py", "ENTRIES[x]", "ENTRIES.get(x)", "plug.table"),
        ("table.py", "return 1", "return 11", "plug.table"),  # registered on import
        ("effect.py", "print(1)", "print(2)", "plug.effect"),  # imported for its effect
        ("deeper.py", "def inner(x):\n    return x", "def inner(x):\n    return -x", "plug.deeper"),  # by another name
        ("lazy.py", "return SOURCE", "return SOURCE * 2", "plug.lazy"),
        ("kernel.c", "return 1", "return 2", "plug/kernel.c"),
        ("shared.py", "LIMIT = 3", "LIMIT = 5", "plug.shared"),
    ],
)
def test_what_a_function_reaches_counts(plug: Callable, name: str, old: str, new: str, changed: str) -> None:
    before, after = plug(), plug(name, old, new)
    assert {key for key in before | after if before.get(key) != after.get(key)} == {changed}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("start.py", "Docstring.", "Another."),
        ("start.py", "# a comment", "# another"),
        ("start.py", "late(x) + table", "late(x)  +  table"),
        ("start.py", "return table.unread()", "return 5"),
        ("table.py", "return 2", "return 22"),
        ("deeper.py", "def beside(x):\n    return x", "def beside(x):\n    return -x"),
        ("shared.py", "UNUSED = 4", "UNUSED = 5"),
        ("apart.py", "return x", "return -x"),
    ],
)
def test_what_it_does_not_reach_changes_nothing(plug: Callable, name: str, old: str, new: str) -> None:
    assert plug() == plug(name, old, new)


def test_a_kept_closure_is_that_of_todays_files(plug: Callable, tmp_path: Path) -> None:
    before = plug()
    assert closure.KEPT.exists()
    path = tmp_path / "plug" / "lazy.py"
    path.write_text(path.read_text().replace("return SOURCE", "return SOURCE * 2"))
    closure.read.cache_clear()
    assert closure.code("plug.start:answer") != before


LOOPS = {  # packages that import a name from one another: of what nobody defines, of itself, and one longer each time
    "two": {"__init__.py": "from two.a import f", "a.py": "from two import f\n\ndef g():\n    return f()"},
    "self": {"__init__.py": "from self import f", "a.py": "import self\n\ndef g():\n    return self.f()"},
    "grows": {"__init__.py": "import grows.b.c as b", "a.py": "from grows import b\n\ndef g():\n    return b.c"},
    "three": {
        "__init__.py": "from .b import f", "b.py": "from .c import f", "c.py": "from . import f",
        "a.py": "from three import f\n\ndef g():\n    return f()",
    },
}  # fmt: skip


@pytest.mark.parametrize("package", LOOPS)
def test_packages_of_a_pth_folder_that_import_one_another_in_a_loop_end(
    tmp_path: Path, reread: Callable, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    folder = tmp_path / "editable" / package
    folder.mkdir(parents=True)
    for name, text in LOOPS[package].items():
        (folder / name).write_text(text)
    (folder / "again").symlink_to(folder, target_is_directory=True)
    monkeypatch.syspath_prepend(str(folder.parent))
    reread()
    before = closure.code(f"{package}.a:g")
    assert f"{package}.a" in before
    (folder / "a.py").write_text((folder / "a.py").read_text() + " or 1")
    reread()
    assert closure.code(f"{package}.a:g") != before


def test_packages_of_another_interpreter_are_installed_ones(
    tmp_path: Path, reread: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dist-packages" / "theirs"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    reread()
    assert closure.source("theirs") is None


def test_modules_that_parameters_name_are_found() -> None:
    params = {"first": "hybrid", "first_params": {"stages": ["bm25", "nothing"], "order": "best_first"}, "k": 3}
    assert list(closure.modules_named(params, "baselines")) == ["baselines.hybrid", "baselines.bm25"]
    assert list(closure.modules_named("json.decoder", "baselines")) == []


@pytest.fixture
def systems(tmp_path: Path, reread: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., set[str]]:
    """Edits a file of a copy of the project; the systems of profile tiny whose cells are then stale."""
    for package in ("msa_base", "msa", "baselines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(closure, "CHECKOUT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    experiment = load("tiny")

    def digests() -> dict[str, str]:
        reread()
        found = {system: Stages(experiment).system(system).digest for system in experiment.profile.systems}
        assert closure.source("baselines.bm25") == tmp_path / "baselines" / "bm25.py"
        return found | {f"index {name}": Stages(experiment).index(name).digest for name in ("bank", "dense_tiny")}

    before = digests()

    def edit(path: str, old: str, new: str) -> set[str]:
        text = (tmp_path / path).read_text()
        assert old in text
        (tmp_path / path).write_text(text.replace(old, new, 1))
        after = digests()
        (tmp_path / path).write_text(text)
        return {name for name in before if before[name] != after[name]}

    edit.root = tmp_path
    return edit


MSA = {"msa", "msa_no_interleave", "msa_free_ids"}
READERS = {
    "closed_book", "oracle", "full_attention", "rag_bm25", "rag_dense", "rag_hybrid", "rag_rerank", "hipporag",
    "memory_agent", "memory_store",
}  # fmt: skip


def test_an_edited_function_of_bm25_reaches_it_and_what_builds_on_it(systems: Callable) -> None:
    found = systems(
        "baselines/bm25.py", "    def rank(", "    def rank_again(self):\n        return 1\n\n    def rank("
    )
    assert found == {"rag_bm25", "rag_hybrid", "rag_rerank"}


def test_an_edit_of_interleaved_generation_reaches_msa_alone_and_not_its_bank(systems: Callable) -> None:
    assert systems("msa/generation/generate.py", "self.done = False", "self.done = 0") == MSA


def test_an_edit_of_decoding_reaches_every_local_reader(systems: Callable) -> None:
    assert systems("msa/generation/decode.py", "class Session:", "class Session:\n    limit = 1\n") == MSA | READERS


def test_an_edit_of_the_router_kernel_in_c_reaches_msa_and_what_holds_models(systems: Callable) -> None:
    assert systems("msa/ops/routing.c", "#include", "#include <math.h>\n#include") >= MSA


def test_a_comment_and_a_docstring_in_every_file_reach_nothing(systems: Callable) -> None:
    future = "from __future__ import annotations\n"
    for path in systems.root.rglob("*.py"):
        text = path.read_text().replace(future, f"{future}# a comment\n")
        path.write_text(text.replace('"""', '"""Another word. ', 1) if text.startswith('"""') else text)
    assert systems("msa/__init__.py", "Another word. ", "Yet another word. ") == set()
