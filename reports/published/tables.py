"""The paper's tables and figures cell by cell, from tables.yaml: what was published, and which cells measure it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from msa_base.validate import Name, Names, Text, Wrong, read_checked
from reports.published.reference import Figure, Measure

TABLES = Path(__file__).parent / "tables.yaml"
AVERAGE = "average"  # of all tasks of a table


@dataclass(frozen=True)
class PublishedLine:
    """What was published of one system, a value a place; ``system`` names it where the suite has it."""

    title: Text
    values: list[Figure]
    system: Text | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper; tables.yaml says what the fields mean."""

    title: Text
    source: Text
    unit: Text
    over: Literal["tasks", "contexts"]
    places: Names
    systems: Annotated[list[PublishedLine], Field(min_length=1)]
    exact: Measure = field(default_factory=Measure)
    miniature: Measure = field(default_factory=Measure)
    profiles: dict[Name, Names] = field(default_factory=dict)
    families: Names = field(default_factory=list)
    timings: Text | None = None  # a module that measures them and writes a CSV

    def __post_init__(self) -> None:
        titles = [line.title for line in self.systems]
        if twice := [title for title in titles if titles.count(title) > 1]:
            raise Wrong(f"systems: '{twice[0]}' is there twice; name it once")
        for line in self.systems:
            if len(line.values) > len(self.places):
                raise Wrong(f"systems: {line.title}: has more values than there are places ({len(self.places)})")

    def measure(self, profile: str) -> Measure:
        """What the table is measured on in a profile."""
        return self.exact if profile in self.exact.profiles else self.miniature


def read_tables(path: Path | None = None) -> dict[str, PaperTable]:
    """Every table by the name of its command; an unknown key is a UserError."""
    return read_checked(dict[Name, PaperTable], path or TABLES)
