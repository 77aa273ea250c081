"""A table of the report: columns of raw values, shown on the page, in Markdown and as text, and written as CSV.

Every cell holds one number: the ends of an interval stand in columns of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from reports.evidence import NOT_MEASURED, Evidence, SummaryRow
from reports.statistics import Interval

NONE = "–"
_MARKS = re.compile(r"[\\`*~\[\]<>|$]")
SHORT = {  # statuses where room is scarce
    "unsupported_context": "too long",
    "out_of_memory": "memory",
    "timeout": "timeout",
    "unavailable_data": "no data",
    "interrupted": "interrupted",
    NOT_MEASURED: NONE,
}
NO_NUMBER = "no number says this: both sides are 0, or one never varies"
NO_BOUND = "the data set no bound on this side: what it is divided by may be 0"
Show = str | Callable[[Any], str]  # a format specification, or a function of the value


def markdown_text(text: str) -> str:
    """Text as Markdown that shows it: nothing in it is a mark, a tag or a formula."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


class Shown(NamedTuple):
    """A cell as it is shown: its text, a tone (a CSS class of the page) and a tooltip."""

    text: str
    tone: str = ""
    tip: str = ""


def shown(value: Any, show: Show, tone: str = "") -> Shown:
    """A value as it is shown, None as a dash."""
    if value is None:
        return Shown(NONE, "none")
    if isinstance(value, float) and not math.isfinite(value):
        return Shown(infinite(value), "none", NO_NUMBER if math.isnan(value) else NO_BOUND)
    return Shown(show(value) if callable(show) else format(value, show), tone)


class Column(NamedTuple):
    """A column by its name in the CSV. One without a title is in the CSV alone."""

    name: str
    title: str = ""
    show: Show = ""
    tone: Callable[[Any], str] = lambda value: ""

    @property
    def titles(self) -> dict[str, str]:
        """The title of each column of the CSV."""
        return {self.name: self.title}

    def raw(self, value: Any) -> list[Any]:
        """What the CSV holds of a value."""
        return [value]

    def shown(self, value: Any) -> list[Shown]:
        """What is shown of a value."""
        return [shown(value, self.show, self.tone(value))]


class PointColumn(NamedTuple):
    """A column of rows of the summary: the point alone, its interval as a tooltip, or the status in its place."""

    name: str
    title: str

    titles = Column.titles

    def raw(self, row: SummaryRow | None) -> list[float | None]:
        return [row and row.value]

    def shown(self, row: SummaryRow | None) -> list[Shown]:
        if row is None or row.value is None:
            status = row.status if row else NOT_MEASURED
            return [Shown(SHORT.get(status, status), "none", words(status))]
        interval = "" if row.low is None else f"{row.low:.3f} to {row.high:.3f}; "
        return [Shown(f"{row.value:.3f}", tip=f"{interval}n = {row.n}; {row.failures} failed; {words(row.status)}")]


class IntervalColumn(NamedTuple):
    """Three columns of what has an interval: the point and the two ends.

    ``neutral`` is where nothing differs: an interval wholly above it is good, one wholly below it bad.
    """

    name: str
    title: str
    show: Show = ".3f"
    neutral: float | None = None

    @property
    def titles(self) -> dict[str, str]:
        before = "" if self.name == "value" else f"{self.name}_"
        return {self.name: self.title, f"{before}low": "low", f"{before}high": "high"}

    def raw(self, found: Interval | SummaryRow | None) -> list[float | None]:
        return [found.value, found.low, found.high] if found else [None] * 3

    def shown(self, found: Interval | SummaryRow | None) -> list[Shown]:
        tone = ""
        if found and self.neutral is not None:
            tone = "good" if found.low > self.neutral else "bad" if found.high < self.neutral else ""
        value, *ends = self.raw(found)
        return [shown(value, self.show, tone), *(shown(end, self.show) for end in ends)]


def plain(**titles: str) -> list[Column]:
    """Columns of plain values, by name and title."""
    return [Column(name, title) for name, title in titles.items()]


def cell_columns(evidence: Evidence, *names: str) -> list[Column]:
    """The columns of parts of a cell: those named of ``task``, ``system`` and ``context``."""
    shows = {"task": ("Task", evidence.title), "system": ("System", evidence.title), "context": ("Memory", "")}
    return [Column(name, *shows[name]) for name in names]


@dataclass(frozen=True)
class Table:
    """A table by its file name. ``rows`` hold a value a column; ``csv`` replaces them in the file where they differ."""

    name: str
    title: str
    columns: Sequence[Column | PointColumn | IntervalColumn]
    rows: list[tuple]
    csv: pd.DataFrame | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """What the CSV holds, with full precision."""
        if self.csv is not None:
            return self.csv
        rows = [[raw for column, value in self._pairs(row) for raw in column.raw(value)] for row in self.rows]
        return pd.DataFrame(rows, columns=[name for column in self.columns for name in column.titles])

    @property
    def header(self) -> list[str]:
        """Titles of the columns that are shown."""
        return [title for column in self.columns for title in column.titles.values() if title]

    @property
    def shown(self) -> list[list[Shown]]:
        """The rows as they are shown."""
        return [
            [cell for column, value in self._pairs(row) if column.title for cell in column.shown(value)]
            for row in self.rows
        ]

    def _pairs(self, row: tuple) -> Iterator[tuple[Any, Any]]:
        return zip(self.columns, row, strict=True)

    def only(self, *names: str) -> Table:
        """The table with some of its columns, in the order given."""
        places = [[column.name for column in self.columns].index(name) for name in names]
        rows = [tuple(row[place] for place in places) for row in self.rows]
        return Table(self.name, self.title, [self.columns[place] for place in places], rows)

    def _texts(self) -> list[list[str]]:
        """The cells, each on one line and without what would steer a terminal."""
        rows = [self.header, *([cell.text for cell in row] for row in self.shown)]
        return [["".join(c if c.isprintable() else " " for c in text) for text in row] for row in rows]

    def markdown(self) -> str:
        """The table in Markdown, ended by a line break."""
        header, *rows = self._texts()
        lines = [[markdown_text(text) for text in line] for line in (header, *rows)]
        lines.insert(1, ["---"] * len(header))
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def text(self) -> list[str]:
        """The table as lines of aligned columns."""
        widths = [max(map(len, column)) for column in zip(*self._texts(), strict=True)]
        return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in self._texts()]


def infinite(value: float) -> str:
    """What is said in place of a number that is none, or has no bound."""
    return "none" if math.isnan(value) else "no bound"


def figure(value: float) -> str:
    """A number of any size with three digits that count."""
    if not math.isfinite(value):
        return infinite(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def bytes_text(value: float) -> str:
    """Bytes in the largest decimal unit that leaves a number above one."""
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {name}"
    return f"{value:.0f} B"


def seconds_text(value: float) -> str:
    """Seconds as milliseconds, seconds or minutes."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"


def words(status: str) -> str:
    """A status as words."""
    return status.replace("_", " ")


def summary_table(name: str, title: str, evidence: Evidence, rows: Iterable[SummaryRow]) -> Table:
    """Rows of the summary: which cell and metric, value, interval, questions, failures and status."""
    columns = [*cell_columns(evidence, "task", "system", "context"), *plain(metric="Metric", unit="")]
    columns += [IntervalColumn("value", "Score"), *plain(n="n", failures="Failed"), Column("status", "Status", words)]
    found = [(it.task, it.system, it.context, it.metric, it.unit, it, it.n, it.failures, it.status) for it in rows]
    return Table(name, title, columns, found)
