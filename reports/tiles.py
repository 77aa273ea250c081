"""The tiles at the top of the page: MSA beside the ceiling, the best of its rivals and the floor, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from reports import sources
from reports.evidence import NEEDLE_MEAN, RECALL, CellKey, Evidence, SummaryRow
from reports.headline import HEADLINED
from reports.published.reference import Reference
from reports.rivals import Contenders
from reports.statistics import Interval

MOST = 4  # tasks with a tile


@dataclass(frozen=True)
class Bar:
    """One system of a tile: its part, its name, its score from 0 to 1 with the interval, and its records."""

    part: str
    name: str
    row: SummaryRow
    links: list[str]


@dataclass(frozen=True)
class Tile:
    """What is measured and where, a bar a system (MSA's first), and one more number in words."""

    title: str
    bars: list[Bar]
    note: str = ""
    links: list[str] = field(default_factory=list)


def tiles(evidence: Evidence, reference: Reference) -> Iterator[Tile]:
    """A tile a task of a headline, at MSA's largest context, and one of what its routers find."""
    ours = reference.played_by["ours"]
    found = [task for task in evidence.compared_tasks if _role(evidence, task) in HEADLINED]
    for task in (found or evidence.compared_tasks)[:MOST]:
        if ours in evidence.systems and (points := evidence.points(ours, task)):
            yield _of_task(evidence, reference, task, points[-1].context)
    for task in evidence.tasks_of_role("scaling")[:1]:
        yield from _recall(evidence, ours, task)


def _role(evidence: Evidence, task: str) -> str:
    return "needles" if task == NEEDLE_MEAN else evidence.experiment.tasks[task].role


def _bars(evidence: Evidence, named: dict[str, str | None], task: str, context: str, metric: str) -> list[Bar]:
    found = []
    for part, system in named.items():
        row = evidence.point(CellKey(system, task, context), metric) if system else None
        if row:
            found.append(Bar(part, evidence.title(system), row, sources.of(evidence, row)))
    return found


def _of_task(evidence: Evidence, reference: Reference, task: str, context: str) -> Tile:
    ours, without = (reference.played_by[role] for role in ("ours", "without_interleave"))
    at = Contenders.of(evidence, ours, task)
    named = {"MSA": ours, "best rival": at.rival, "ceiling": at.ceiling, "floor": at.floor}
    if _role(evidence, task) == "multi_hop" and without in evidence.systems:
        named["no interleave"] = without
    return Tile(f"{evidence.title(task)}, {context}", _bars(evidence, named, task, context, "accuracy"))


def _recall(evidence: Evidence, ours: str, task: str) -> Iterator[Tile]:
    """The lowest recall of MSA's layers in the first round beside the best of the retrievers."""
    layers = [metric for metric in evidence.recalls(ours, task) if metric.count("/") == 1]
    rows = [points[-1] for metric in layers if (points := evidence.points(ours, task, metric))]
    if not rows:
        return
    context = max(rows, key=lambda row: row.context_tokens).context
    worst = min((row for row in rows if row.context == context), key=lambda row: row.value)
    specs = evidence.experiment.systems
    others = [
        row
        for system in evidence.systems
        if specs[system].kind != specs[ours].kind and not specs[system].reads_gold
        for metric in evidence.recalls(system, task)
        if (row := evidence.point(CellKey(system, task, context), metric))
    ]
    bars = [Bar("MSA", evidence.title(ours), worst, sources.of(evidence, worst))]
    if others:
        best = max(others, key=lambda row: row.value)
        bars.append(Bar("best rival", evidence.title(best.system), best, sources.of(evidence, best)))
    layer = worst.metric.removeprefix(f"{RECALL}/")
    yield Tile(f"{RECALL} of the routing, {context}", bars, f"the lowest of MSA's layers ({layer})")


def ends(row: SummaryRow | Interval) -> tuple[float, float]:
    """Both ends of an interval; the value itself where it has none."""
    return (row.value, row.value) if row.low is None else (row.low, row.high)
