"""Tables as a LaTeX document of its own: plain packages, and every measured number a link to its record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from reports.tables.linked import LinkedCell
from reports.tables.table import Table

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "²": r"\textsuperscript{2}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}
_SPECIAL = re.compile("|".join(map(re.escape, _ESCAPES)))
HEAD = r"""\documentclass{article}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{longtable}
\usepackage[hidelinks]{hyperref}
\begin{document}
"""


def text(words: str) -> str:
    """Words as LaTeX shows them; what is no ASCII and has no form above is a question mark."""
    escaped = _SPECIAL.sub(lambda found: _ESCAPES[found[0]], " ".join(words.split()))
    return escaped.encode("ascii", "replace").decode()


def url(link: str) -> str:
    """A link as the argument of \\href, which takes all marks but these as they stand."""
    return re.sub("[%#&]", lambda found: rf"\{found[0]}", link)


def document(title: str, note: str, parts: Iterable[tuple[Table, Sequence[Sequence[LinkedCell]]]]) -> str:
    """A document: a title, a note and tables, each with the cells that are shown of it."""
    body = [HEAD, rf"\section*{{{text(title)}}}", text(note), ""]
    for table, rows in parts:
        shape = "l" * len(table.header)
        body += [rf"\subsection*{{{text(table.title)}}}", rf"\begin{{longtable}}{{{shape}}}", r"\hline"]
        body += [f"{' & '.join(map(text, table.header))} \\\\", r"\hline", r"\endhead"]
        body += [f"{' & '.join(map(_cell, row))} \\\\" for row in rows]
        body += [r"\hline", r"\end{longtable}", ""]
    return "\n".join([*body, r"\end{document}", ""])


def _cell(cell: LinkedCell) -> str:
    return rf"\href{{{url(cell.link)}}}{{{text(cell.text)}}}" if cell.link else text(cell.text)
