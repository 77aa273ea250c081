"""The cells of one of the paper's tables: what was published beside what was measured, with a verdict on each.

A cell is a system at a task, or at the mean of some tasks that count equally, at one context. Where tasks and metric
are the paper's own, a cell is ``as published`` if its interval holds the published value, else ``below`` or ``above``;
intervals are adjusted for the number of cells that differ (:func:`reports.multiplicity.adjusted_level`). Elsewhere the
published value stands beside another task: the verdicts are those of the table's claims.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reports.evidence import NOT_MEASURED, CellKey, Evidence
from reports.multiplicity import adjusted_level
from reports.published.reference import Measure, Reference
from reports.published.tables import AVERAGE, PaperTable, PublishedLine
from reports.statistics import LEVEL, Interval, macro_interval
from reports.summarise import POINTS

ABSENT = "not in this profile"
WORDS = AS_PUBLISHED, BELOW, ABOVE, FEW = "as published", "below", "above", "inconclusive"
OTHER_TASK, REHEARSED = "another task", "rehearsal"


@dataclass(frozen=True)
class TableCell:
    """A number of a table: the cells that it is the mean of, what was published, and its interval or status."""

    title: str
    place: str
    published: float | None
    cells: list[CellKey]
    metric: str
    measured: Interval | None
    status: str
    instead: str  # why it is not held against the published number, empty where it is


def tasks_of(measure: Measure, evidence: Evidence) -> list[str]:
    """The tasks of a measure that the profile has."""
    tasks = evidence.tasks_of_role(measure.role) if measure.role else measure.tasks
    return [task for task in tasks if task in evidence.experiment.profile.tasks]


def systems_of(table: PaperTable, evidence: Evidence, reference: Reference) -> list[str]:
    """The table's systems that the profile has, by the names that it knows them by."""
    named = [played(line, reference) for line in table.systems]
    return [name for name in dict.fromkeys(named) if name in evidence.systems]


def played(line: PublishedLine, reference: Reference) -> str | None:
    """The system of a line, roles resolved; None where the suite has none."""
    return reference.played_by.get(line.system, line.system) if line.system else None


def cells(table: PaperTable, evidence: Evidence, reference: Reference, level: float = LEVEL) -> list[TableCell]:
    """Every number of a table, in its order, with intervals of a level."""
    profile = evidence.experiment.name
    measure, instead = table.measure(profile), "" if profile in table.exact.profiles else OTHER_TASK
    instead = REHEARSED if evidence.experiment.profile.rehearsal else instead
    found = []
    for line in table.systems:
        system = played(line, reference)
        published = dict(zip(table.places, line.values, strict=False))
        for place, tasks, context in _places(table, tasks_of(measure, evidence), evidence):
            keys = [CellKey(system, task, context) for task in tasks] if system in evidence.systems else []
            interval, status = _measure(evidence, keys, measure.metric, level)
            status = status if system else NOT_MEASURED
            found.append(
                TableCell(line.title, place, published.get(place), keys, measure.metric, interval, status, instead)
            )
    return found


def _places(table: PaperTable, tasks: list[str], evidence: Evidence) -> Iterator[tuple[str, list[str], str]]:
    """The places of a profile, each with its tasks and context; those of the paper where there are no tasks."""
    if not tasks:
        yield from ((place, [], "") for place in table.places)
    elif table.over == "contexts":
        yield from ((context, tasks, context) for context in evidence.contexts)
    else:
        last = evidence.contexts[-1]
        yield from ((task, [task], last) for task in tasks)
        yield AVERAGE, tasks, last


def _measure(evidence: Evidence, keys: list[CellKey], metric: str, level: float) -> tuple[Interval | None, str]:
    """The mean of some cells, or None and the first status that is not ok."""
    if not keys:
        return None, ABSENT
    statuses = [status for key in keys if (status := evidence.status(key)) != "ok"]
    values = [evidence.values(key, metric).dropna() for key in keys]
    if statuses or not all(len(column) for column in values):
        return None, statuses[0] if statuses else f"no {metric}"
    scale = POINTS.get(metric, 1.0)
    heads = [evidence.heads(key.task, key.context, column.index) for key, column in zip(keys, values, strict=True)]
    return macro_interval([column.to_numpy() / scale for column in values], heads, level).scaled(scale), "ok"


def level_of(table: PaperTable, evidence: Evidence, reference: Reference) -> float:
    """The level of a table's intervals: adjusted where its cells are held against published values."""
    wide = cells(table, evidence, reference)
    places = [at for at, cell in enumerate(wide) if not cell.instead and cell.measured and cell.published is not None]

    def differs(at: int, level: float) -> bool:
        return _is_outside(cells_at(level)[at])

    known: dict[float, list[TableCell]] = {}

    def cells_at(level: float) -> list[TableCell]:
        return known.setdefault(level, cells(table, evidence, reference, level))

    return adjusted_level([lambda level, at=at: differs(at, level) for at in places])


def _is_outside(cell: TableCell) -> bool:
    return not cell.measured.low <= cell.published <= cell.measured.high


def verdict(cell: TableCell, reference: Reference) -> str:
    """The word for a cell: of its interval against the published value, else its status."""
    if cell.measured is None:
        return cell.status
    if cell.instead or cell.published is None:
        return cell.instead
    if cell.measured.n < reference.least.questions:
        return FEW
    if not _is_outside(cell):
        return AS_PUBLISHED
    return BELOW if cell.measured.high < cell.published else ABOVE
