"""Tables of scores: every cell, at a glance, compared over the same questions, and beside the floors of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.evidence import ACCURACY, NEEDLE_MEAN, RECALL, CellKey, Evidence
from reports.statistics import difference, ratio
from reports.tables.table import Column, IntervalColumn, PointColumn, Table, cell_columns, plain, summary_table

OWN_METRICS = {  # of generated tasks
    "rejected": "Rejected value said",
    "abstained/answerable": "Abstained, answerable",
    "abstained/unanswerable": "Abstained, unanswerable",
    "every_wording": "Every wording right",
}
AT_FLOOR, AT_CEILING = "at the floor", "at the ceiling"


def tasks_of_scores(evidence: Evidence) -> list[str]:
    """The mean of the needle tasks, then what is not in it, then the eight one by one."""
    return [*evidence.compared_tasks, *evidence.needle_tasks]


def overview(evidence: Evidence, context: str) -> Table:
    """Accuracy of every system at every task at one context: points alone."""
    rows = [
        (task, *(evidence.row(CellKey(system, task, context)) for system in evidence.systems))
        for task in tasks_of_scores(evidence)
    ]
    points = [PointColumn(system, evidence.title(system)) for system in evidence.systems]
    columns = [*cell_columns(evidence, "task"), *points]
    return Table(f"scores_{context}", f"Accuracy at {context} tokens", columns, rows)


def by_memory(evidence: Evidence) -> Table:
    """Accuracy of every system at every task over the contexts: points alone."""
    rows = [
        (task, system, *(evidence.row(CellKey(system, task, context)) for context in evidence.contexts))
        for task in tasks_of_scores(evidence)
        for system in evidence.systems
    ]
    columns = [*cell_columns(evidence, "task", "system"), *_by_context(evidence)]
    return Table("by_memory", "Accuracy against memory size", columns, rows)


def _by_context(evidence: Evidence) -> list[PointColumn]:
    return [PointColumn(context, context) for context in evidence.contexts]


def scores(evidence: Evidence, tasks: Sequence[str], contexts: Sequence[str]) -> Table:
    """Accuracy of every system at the tasks and contexts named, with intervals."""
    cells = [CellKey(system, task, context) for task in tasks for system in evidence.systems for context in contexts]
    found = [row for cell in cells if (row := evidence.row(cell))]
    return summary_table("scores", "Accuracy, all cells", evidence, found)


def comparisons(evidence: Evidence, ours: str) -> Table:
    """Paired differences of MSA to every other system, at the ends of the contexts."""
    rows = []
    for system in evidence.systems:
        for task in evidence.compared_tasks if system != ours else ():
            for context in evidence.ends:
                pairs = evidence.pairs(evidence.members(task), (ours, context), (system, context))
                found = difference(*pairs) if pairs else None
                rows.append((system, task, context, found, found and found.n, found and found.method))
    columns = [Column("system", "MSA minus", evidence.title), *cell_columns(evidence, "task", "context")]
    columns += [IntervalColumn("difference", "Difference", "+.3f", neutral=0), *plain(n="n", method="By")]
    return Table("comparisons", "MSA against each system, same questions", columns, rows)


def interleave(evidence: Evidence, roles: dict[str, str]) -> Table:
    """Two-hop accuracy with and without Memory Interleave, their paired difference and ratio, at every context."""
    rows = []
    for task in evidence.tasks_of_role("multi_hop"):
        for context in evidence.contexts:
            sides = [(roles[role], context) for role in ("ours", "without_interleave")]
            means = [evidence.point(CellKey(system, task, context)) for system, _ in sides]
            pairs = evidence.pairs([task], *sides)
            compared = (difference(*pairs), ratio(*pairs), len(pairs.tables[0])) if pairs else (None, None, None)
            rows.append((task, context, *(mean and mean.value for mean in means), *compared))
    columns = [
        *cell_columns(evidence, "task", "context"),
        Column("with", "With interleave", ".3f"),
        Column("without", "Without", ".3f"),
        IntervalColumn("difference", "Paired difference", "+.3f", neutral=0),
        IntervalColumn("ratio", "Ratio", ".2f", neutral=1),
        Column("n", "n"),
    ]
    return Table("interleave", "Memory Interleave on two-hop questions", columns, rows)


def free_ids(evidence: Evidence, roles: dict[str, str]) -> Table:
    """Document ids constrained to the routed candidates beside ids decoded freely: accuracy and citation recall."""
    rows = []
    for task in evidence.compared_tasks:
        for context in evidence.ends:
            for metric in (ACCURACY, "citation_recall") if task != NEEDLE_MEAN else (ACCURACY,):
                sides = [evidence.point(CellKey(roles[role], task, context), metric) for role in ("ours", "free_ids")]
                rows.append((task, context, metric, *sides))
    columns = [
        *cell_columns(evidence, "task", "context"),
        Column("metric", "Metric", lambda metric: metric.replace("_", " ")),
        IntervalColumn("constrained", "Constrained"),
        IntervalColumn("free", "Free"),
    ]
    return Table("free_ids", "Constrained and free document ids", columns, rows)


def recall(evidence: Evidence, ours: str) -> Table:
    """Recall@16 of each routed layer at every task and context."""
    rows = [
        (task, metric, *(evidence.row(CellKey(ours, task, context), metric) for context in evidence.contexts))
        for task in evidence.experiment.profile.tasks
        for metric in evidence.recalls(ours, task)
    ]
    columns = [
        *cell_columns(evidence, "task"),
        Column("metric", "Round and layer", lambda metric: metric.removeprefix(f"{RECALL}/")),
        *_by_context(evidence),
    ]
    return Table("recall", "Routing recall@16 of MSA", columns, rows)


def scenarios(evidence: Evidence) -> Iterator[Table]:
    """Accuracy of generated tasks beside what guessing scores; no table where no task names such a floor."""
    rows = []
    for cell in evidence.cells():
        if floor := evidence.floor(cell.task, cell.context):
            row = evidence.point(cell)
            own = [evidence.point(cell, metric) for metric in OWN_METRICS]
            stands = ""
            if row and row.low <= floor.value:
                stands = AT_FLOOR
            elif row and row.value >= 1:
                stands = AT_CEILING
            values = [found and found.value for found in own]
            rows.append((cell.task, cell.system, cell.context, row, floor.value, floor.of, stands, *values))
    columns = [
        *cell_columns(evidence, "task", "system", "context"),
        IntervalColumn(ACCURACY, "Accuracy"),
        Column("floor", "Floor", ".3f"),
        Column("floor_of", "Floor of"),
        Column("stands", "Stands", tone={AT_FLOOR: "bad", AT_CEILING: "unsure", "": ""}.__getitem__),
        *(Column(metric, title, ".3f") for metric, title in OWN_METRICS.items()),
    ]
    if rows:
        yield Table("scenarios", "Scores beside their floors", columns, rows)
