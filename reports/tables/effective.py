"""Effective length: how large a memory may be before a system keeps less than 85 % of its score at the smallest.

NoLiMa (Modarressi et al. 2025) counts so, from a score at short context, and RULER (Hsieh et al. 2024) from a fixed
score; here the base is the score at the profile's smallest memory that was measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from reports.evidence import NEEDLE_MEAN, Evidence, SummaryRow
from reports.published.reference import Reference
from reports.published.tables import read_tables
from reports.statistics import Interval, ratio
from reports.tables.table import IntervalColumn, Table, cell_columns, plain

KEPT = 0.85


def effective_length(evidence: Evidence, reference: Reference) -> Table:
    """A row a system and task: the largest memory up to which every size keeps 85 %, by the point and by the interval.

    The ratio is that of the first memory that keeps less, or of the largest.
    """
    columns = [
        *cell_columns(evidence, "task", "system"),
        *plain(base_context="Smallest memory"),
        IntervalColumn("base", "Score there"),
        *plain(effective="Keeps 85 % to", certain="Its whole interval to", last="Ratio at"),
        IntervalColumn("ratio", "Ratio", ".2f"),
        *plain(n="n", published_to="The paper's figure"),
    ]
    published = dict(_published(reference))
    rows = []
    for task in [*([NEEDLE_MEAN] if evidence.needle_tasks else []), *evidence.tasks_of_role("scaling")]:
        for system in evidence.systems:
            if (row := _row(evidence, system, task)) is not None:
                rows.append((task, system, *row, published.get(system, "") if task == NEEDLE_MEAN else ""))
    return Table("effective_length", "Effective length: where 85 % of the score is kept", columns, rows)


def _row(evidence: Evidence, system: str, task: str) -> tuple | None:
    """Base, lengths, and the ratio that ended them; None where fewer than two sizes have a score, or the first is 0."""
    points = evidence.points(system, task)
    if len(points) < 2 or not points[0].value:
        return None
    base = points[0]
    kept = certain = last = base.context
    found: Interval | None = None
    is_certain = True
    for point in points[1:]:
        found, last = _ratio(evidence, point, base), point.context
        if found is None or found.value < KEPT:
            break
        kept = point.context
        is_certain = is_certain and found.low >= KEPT
        certain = point.context if is_certain else certain
    return base.context, base, kept, certain, last, found, found and found.n


def _ratio(evidence: Evidence, point: SummaryRow, base: SummaryRow) -> Interval | None:
    """A score over the base's, of the same questions."""
    sides = (point.system, point.context), (base.system, base.context)
    pairs = evidence.pairs(evidence.members(point.task), *sides)
    return ratio(*pairs) if pairs else None


def _published(reference: Reference) -> Iterator[tuple[str, str]]:
    """The same of the lines of the paper's Figure 4."""
    figure = read_tables()["figure-4"]
    for line in figure.systems:
        kept = 0
        while kept < len(line.values) and line.values[kept] >= KEPT * line.values[0]:
            kept += 1
        system = reference.played_by.get(line.system or "", line.system or "")
        yield system, f"{line.title}: {figure.places[kept - 1]}"
