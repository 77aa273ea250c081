"""Titles of people and words of models are shown as they stand: no formula, tag or mark, in no page or figure."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from msa_base.errors import UserError
from msa_base.specs import SystemSpec
from msa_base.validate import build
from reports.build import Report
from reports.figures import look
from reports.tables.table import Table, markdown_text, plain

TITLE = r"$\foo$ <script>alert('x')</script> | a_b & `c` *d* {{ 7 * 7 }} [e](f)"


def test_hostile_titles_and_reasons_are_text_everywhere(new_tree: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = new_tree(tasks={"scaling_facts": 16}, contexts=["16K", "1M"], systems=["msa", "rag_bm25"])
    tree.grow()
    evidence = tree.evidence()
    systems = {name: dict(vars(spec), title=f"{TITLE} {name}") for name, spec in evidence.experiment.systems.items()}
    for name, spec in systems.items():
        evidence.experiment.systems[name] = SystemSpec(**spec)
    object.__setattr__(evidence.experiment.profile, "title", TITLE)
    report = Report(evidence)
    page = report.page()
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "7 * 7" in page and ">49<" not in page
    assert report.figures
    for svg in report.figures.values():
        ElementTree.fromstring(svg)
    assert any(r"$\foo$" in "".join(ElementTree.fromstring(svg).itertext()) for svg in report.figures.values())
    assert not re.search(r"(?<!\\)[$<`*|]", markdown_text(TITLE))


def test_a_formula_in_a_title_is_no_formula() -> None:
    figure = Figure()
    figure.subplots().set_title(r"$\foo$ $x^2$")
    assert r"$\foo$ $x^2$" in look.svg(figure)


def test_a_cell_stays_on_its_line() -> None:
    table = Table("a", "A", plain(text="Text"), [("one\ntwo\x1b[2J\r|three",)])
    assert table.markdown().count("\n") == 3 and "\x1b" not in table.markdown()
    assert len(table.text()) == 2 and "\x1b" not in "".join(table.text())


@pytest.mark.parametrize("title", ["", "a\x1b[2Jb", "a\x00b", "a\u202eb"])
def test_a_title_holds_no_control_characters(title: str) -> None:
    with pytest.raises(UserError, match="key 'title'"):
        build(SystemSpec, {"kind": "bm25", "title": title}, "here")
