"""What the documents name exists: files, functions, commands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "results" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
UNLED = {"README.md", "ARCHITECTURE.md", "LOG.md"}  # they are read, not run
OURS = ("msa_base", "msa", "tasks", "baselines", "reports")


def defined(path: Path) -> set[str]:
    """Functions, classes, methods and attributes of a file, dotted where they stand in a class."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            members = node.body if isinstance(node, ast.ClassDef) else []
            names |= {f"{node.name}.{item.name}" for item in members if isinstance(item, ast.FunctionDef)}
    return names


def test_every_function_that_the_architecture_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / "docs" / "ARCHITECTURE.md").read_text())
    assert len(named) > 20
    assert not [f"{file}:{name}" for file, name in named if name not in defined(ROOT / file)]


def test_the_walk_of_a_question_enters_few_files_and_none_of_planning() -> None:
    walk = (ROOT / "docs" / "ARCHITECTURE.md").read_text().split("## The walk of a question")[1].split("\n## ")[0]
    files = set(re.findall(r"`([\w/]+\.py):", walk))
    assert len(files) <= 20 and not [file for file in files if "planning" in file]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    for module in set(re.findall(r"python -m ([a-z_][\w.]*)", text)):
        if module.split(".")[0] in OURS:
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for path in set(
        re.findall(r"(?<!Write )`((?:msa_base|msa|tasks|baselines|reports|configs|docs|tests)/[\w./-]*\w/?)`", text)
    ):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    rules = re.findall(r"^([a-z][\w -]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    assert not set(re.findall(r"(?:^ {4}|`)make ([a-z][\w-]*)", text, flags=re.MULTILINE)) - targets
    assert "../shared" not in text


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in UNLED], ids=lambda path: path.name)
def test_a_page_begins_with_its_one_command(page: Path) -> None:
    assert re.match(r"# .+\n\n    (\.venv/bin/)?(make|python|WANDB_MODE=online make) ", page.read_text())


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
