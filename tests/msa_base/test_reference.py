"""The configuration reference says what the records say."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Literal

from pydantic import Field

from msa_base import reference
from msa_base.load import load
from msa_base.validate import Count


@dataclasses.dataclass(frozen=True)
class Inner:
    """What is held."""

    size: Annotated[float, Field(gt=0, lt=3)] = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    """What holds ``inner``."""

    # the line before
    mode: Literal["a", "b"]
    inner: Inner = dataclasses.field(default_factory=Inner)
    counts: dict[str, Count] = dataclasses.field(default_factory=lambda: {"x": 1})  # of each | both
    pair: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None


def test_the_page_is_what_the_command_writes() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run: python -m msa_base.reference"


def test_a_record_becomes_rows_with_value_default_and_meaning() -> None:
    told: dict[type, str] = {}
    text = "".join(reference._sections(Outer, "Outer", "###", told))
    assert [line for line in text.splitlines() if line.startswith("| `")] == [
        "| `mode` | `a`, `b` | **required** | the line before |",
        "| `inner` | [Inner](#inner) | its defaults |  |",
        '| `counts` | mapping to whole number from 1 | `{"x": 1}` | of each \\| both |',
        "| `pair` | list (2) of whole number | none |  |",
        "| `size` | number above 0 below 3 | `0.5` |  |",
    ]
    assert told == {Outer: "Outer", Inner: "Inner"}


def test_every_kind_of_the_tables_and_every_link_has_a_place() -> None:
    page, experiment = reference.page(), load("tiny")
    headings = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
    assert len(headings) > 40 and len(set(headings)) == len(headings)
    tables = experiment.tasks, experiment.corpora, experiment.systems, experiment.indexes
    kinds = {entry.kind for table in tables for entry in table.values()}
    assert {f"kind: {kind}" for kind in kinds} <= set(headings)
    assert set(re.findall(r"\]\((#.*?)\)", page)) <= {reference._anchor(heading) for heading in headings}
