"""The layers hold: msa_base <- msa, tasks, reports; baselines -> msa_base, msa; and nothing reaches upward."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "msa_base": {"msa_base"},
    "msa": {"msa_base", "msa"},
    "tasks": {"msa_base", "tasks"},
    "reports": {"msa_base", "reports"},
    "baselines": {"msa_base", "msa", "baselines"},
}
SHARED_NAMES = {"Params", "IndexParams", "ModelParams", "CorpusParams"}  # what a plug-in's module calls them
OURS = {*MAY_IMPORT, "tests"}
ROOMS_OF_MSA = ("ops", "model", "checkpoints", "memory", "generation", "training", "bench")  # as msa/__init__.py says
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of every import of a file, wherever it stands in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(path.relative_to(ROOT).parts[0] if node.level else (node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute(path: Path) -> None:
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "level", 0)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_its_own_layer_and_those_below(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert (imported(path) & OURS) <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_its_job_in_its_first_line(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring and len(docstring.splitlines()[0]) > 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle(path: Path) -> None:
    assert not imported(path) & {"pickle", "dill", "joblib", "shelve"}
    assert "torch.load(" not in path.read_text() or "weights_only=True" in path.read_text()


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules_imported(path: Path) -> set[str]:
    """Our modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & MODULES) or {node.module}
    return found & MODULES


MODULES = {module_of(path) for path in FILES}
IMPORTS = {module_of(path): modules_imported(path) - {module_of(path)} for path in FILES}


def test_no_files_import_each_other_in_a_circle() -> None:
    assert len(IMPORTS) > 100
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    kernels = ("msa/ops/cpu.py", "msa/ops/triton_")  # a kernel is read in one piece
    assert not {name: length for name, length in lengths.items() if length > 400 and not name.startswith(kernels)}


def test_rooms_of_msa_import_those_before_them() -> None:
    pairs = [(a, b) for a, found in IMPORTS.items() for b in found if a.count(".") > 1 < b.count(".")]
    pairs = [(a, b) for a, b in pairs if a.startswith("msa.") and b.startswith("msa.")]
    assert len(pairs) > 100
    order = ROOMS_OF_MSA.index
    assert not [(a, b) for a, b in pairs if order(b.split(".")[1]) > order(a.split(".")[1])]


def test_a_class_name_means_one_class() -> None:
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert len(places) > 100
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SHARED_NAMES} == {}
