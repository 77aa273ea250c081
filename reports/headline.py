"""The few numbers at the top of the report."""

from __future__ import annotations

from collections.abc import Iterator

from reports.evidence import NEEDLE_MEAN, NOT_MEASURED, RECALL, CellKey, Evidence, SummaryRow
from reports.published.reference import Reference
from reports.statistics import Interval, difference, loss, ratio
from reports.tables.table import Column, IntervalColumn, Table, cell_columns, figure, plain

Number = tuple[str, Interval | SummaryRow | None, str, list[CellKey]]  # what, value with interval, unit, of which cells
HEADLINED = ("scaling", "needles", "multi_hop")  # roles of tasks with numbers of their own


def numbers(evidence: Evidence, reference: Reference) -> Iterator[Number]:
    """The headline numbers in the order of the report; a number that is missing says so."""
    ours = reference.played_by["ours"]
    scaling = evidence.tasks_of_role("scaling")[:1]
    for task in [*scaling, *([NEEDLE_MEAN] if evidence.needle_tasks else [])]:
        yield from _over_contexts(evidence, ours, task)
    for task in scaling:
        yield _worst_recall(evidence, ours, task)
    for task in evidence.tasks_of_role("multi_hop")[:1]:
        yield from _interleave(evidence, ours, reference.played_by["without_interleave"], task)


def _over_contexts(evidence: Evidence, system: str, task: str) -> Iterator[Number]:
    points, title = evidence.points(system, task), evidence.title(task)
    if not points:
        yield (f"MSA, {title}", None, "", [])
        return
    first, last = points[0], points[-1]
    for row in dict.fromkeys((first, last)):
        yield (f"MSA, {title} at {row.context}", row, "", [])
    pairs = evidence.pairs(evidence.members(task), (system, last.context), (system, first.context))
    if first is not last and pairs and first.value:
        label, cells = f"lost from {first.context} to {last.context}", [_cell(last), _cell(first)]
        yield (f"MSA, {title}, {label}", loss(*pairs).scaled(100), "%", cells)


def _cell(row: SummaryRow) -> CellKey:
    return CellKey(row.system, row.task, row.context)


def _worst_recall(evidence: Evidence, system: str, task: str) -> Number:
    """The lowest recall of the layers in the first round, at the largest context that was measured."""
    first_round = [metric for metric in evidence.recalls(system, task) if metric.count("/") == 1]
    rows = [row for metric in first_round for row in evidence.points(system, task, metric)]
    if not rows:
        return f"MSA, routing {RECALL}", None, "", []
    largest = max(row.context_tokens for row in rows)
    worst = min((row for row in rows if row.context_tokens == largest), key=lambda row: row.value)
    layer = worst.metric.removeprefix(f"{RECALL}/")
    return f"MSA, routing {RECALL} at {worst.context}, the lowest layer ({layer})", worst, "", []


def _interleave(evidence: Evidence, ours: str, without: str, task: str) -> Iterator[Number]:
    """What interleaving gains at the largest context that both have."""
    label = f"{evidence.title(task)}, with interleave"
    for context in reversed(evidence.contexts):
        if pairs := evidence.pairs([task], (ours, context), (without, context)):
            cells = [CellKey(system, task, context) for system in (ours, without)]
            yield (f"{label} over without at {context}", ratio(*pairs), "x", cells)
            yield (f"{label} minus without at {context}", difference(*pairs).scaled(100), "points", cells)
            return
    yield (f"{label} and without", None, "", [])


def cells_measured(evidence: Evidence) -> str:
    """How many cells have scores, failed as expected, and have not run."""
    statuses = [evidence.status(cell) for cell in evidence.cells()]
    ok, open_cells = statuses.count("ok"), statuses.count(NOT_MEASURED)
    failed = len(statuses) - ok - open_cells
    return f"{ok} of {len(statuses)} ok, {failed} failed as expected, {open_cells} not measured"


def headline(evidence: Evidence, reference: Reference) -> Table:
    """The headline numbers as a table."""
    columns = [Column("what", "Number"), IntervalColumn("value", "Value", figure), Column("unit", "Unit")]
    columns.append(Column("of"))
    return Table("headline", "Headline numbers", columns, list(numbers(evidence, reference)))


def largest(evidence: Evidence) -> Table:
    """The score of each task and system at the largest context that was measured, and what of the gold it found."""
    rows = []
    for task in evidence.experiment.profile.tasks:
        for system in evidence.systems:
            if points := evidence.points(system, task):
                row, recalls = points[-1], evidence.recalls(system, task)
                found = evidence.point(CellKey(system, task, row.context), recalls[0]) if recalls else None
                metric = evidence.experiment.tasks[task].metric
                rows.append((task, system, row.context, metric, row, row.n, found and found.value))
    columns = [*cell_columns(evidence, "task"), *plain(system="System", context="Memory", metric="Metric")]
    columns += [IntervalColumn("value", "Score"), Column("n", "n"), Column("recall", RECALL, ".2f")]
    return Table("largest", "Scores at the largest memory", columns, rows)
