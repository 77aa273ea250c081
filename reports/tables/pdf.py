"""Tables as a PDF for a review: A4 on its side, letters of one width, a table's header on each of its pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.figures.look import EDGE, MUTED, STYLE
from reports.tables.table import Table

WIDTH, HEIGHT, MARGIN = 842.0, 595.0, 40.0  # of A4, in points
LARGEST = 8.5  # letters in points; those of a wide table are as small as its width asks for
ADVANCE, LEADING = 0.602, 1.5  # of a letter of DejaVu Sans Mono, of a line, in the size of its letters
TITLE, GAP = 24.0, 14.0  # heights of a title with its rule, and of what is left before it
LEAST_ROWS = 3  # that stand under a title before a page ends


class PlacedLine(NamedTuple):
    """A line of a page: its place from the top in points, its text, the size of its letters, and what it is."""

    top: float
    text: str
    size: float
    kind: str  # title, header or row


def pages(tables: Iterable[Table]) -> Iterator[list[PlacedLine]]:
    """The lines of every page."""
    page: list[PlacedLine] = []
    top, bottom = MARGIN, HEIGHT - MARGIN
    for table in tables:
        header, *rows = table.text()
        size = min(LARGEST, (WIDTH - 2 * MARGIN) / (ADVANCE * max(map(len, (header, *rows)))))
        step = size * LEADING
        if page and top + TITLE + (1 + min(LEAST_ROWS, len(rows))) * step > bottom:
            yield page
            page, top = [], MARGIN
        title = table.title
        for place, row in enumerate(rows or ["not measured"]):
            if place == 0 or top + step > bottom:
                if place:
                    yield page
                    page, top, title = [], MARGIN, f"{table.title} (continued)"
                page += [PlacedLine(top, title, 11.0, "title"), PlacedLine(top + TITLE, header, size, "header")]
                top += TITLE + step
            page.append(PlacedLine(top, row, size, "row"))
            top += step
        top += GAP
    yield page


def write(path: Path, tables: Iterable[Table], name: str) -> None:
    """Write tables into a PDF whose pages are called ``name``; the same tables give the same bytes."""
    fonts = {"pdf.fonttype": 42}  # letters that can be searched for
    with rc_context({**STYLE, **fonts}), PdfPages(path, metadata={"Title": name, "CreationDate": None}) as pdf:
        for number, lines in enumerate(pages(tables), 1):
            figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
            for line in lines:
                _draw(figure, line)
            foot = 1 - MARGIN / WIDTH, 0.5 * MARGIN / HEIGHT
            figure.text(*foot, f"{name}, page {number}", size=7, color=MUTED, ha="right")
            pdf.savefig(figure)


def _draw(figure: Figure, line: PlacedLine) -> None:
    x, y = MARGIN / WIDTH, 1 - line.top / HEIGHT
    family = "DejaVu Sans" if line.kind == "title" else "DejaVu Sans Mono"
    weight = "normal" if line.kind == "row" else "bold"
    figure.text(x, y, line.text, size=line.size, family=family, weight=weight, va="top")
    if line.kind == "header":
        under = y - 1.25 * line.size / HEIGHT
        figure.add_artist(Line2D([x, 1 - x], [under, under], color=EDGE, linewidth=0.6))
