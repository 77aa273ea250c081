"""Where a number comes from: links from a report's folder to the run.json, or other record, that holds it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from urllib.parse import quote

from reports.evidence import LATENCY, CellKey, Evidence, SummaryRow


def link(evidence: Evidence, path: Path) -> str:
    """A file of the results tree, as the report's folder sees it."""
    return f"../{_quoted(str(path.relative_to(evidence.paths.root)))}"


@cache
def _quoted(path: str) -> str:
    return quote(path)


def runs(evidence: Evidence, cells: Iterable[CellKey]) -> list[str]:
    """The run.json of every seed of cells, as far as they have run; those of the eight tasks for their mean."""
    members = (cell._replace(task=task) for cell in dict.fromkeys(cells) for task in evidence.members(cell.task))
    return [
        link(evidence, evidence.paths.cell(*cell, run.seed) / "run.json")
        for cell in members
        for run in evidence.runs.get(cell, [])
    ]


def latency(evidence: Evidence, system: str) -> list[str]:
    """The latency.json of a system, if it has one."""
    return [link(evidence, evidence.paths.latency(system))] if system in evidence.latency else []


def of(evidence: Evidence, row: SummaryRow) -> list[str]:
    """The records that a row of the summary was made from."""
    if row.metric.startswith(f"{LATENCY}/"):
        return latency(evidence, row.system)
    return runs(evidence, [CellKey(row.system, row.task, row.context)])


def first(links: list[str], says: str) -> str:
    """The first of some links, with what it leads to behind a #, which :mod:`reports.figures.panel` makes a tooltip.

    Empty where there is none.
    """
    more = f" (first of {len(links)} runs)" if len(links) > 1 else ""
    return f"{links[0]}#{quote(says + more)}" if links else ""
