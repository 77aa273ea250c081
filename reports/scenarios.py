"""Tasks that name a floor: accuracy beside what guessing scores, and the metrics of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from configs.tables import read_json
from reports.evidence import Evidence
from reports.tables import Field, Table, value_field

OWN_METRICS = {
    "rejected": "Rejected value said",
    "abstained/answerable": "Abstained, answerable",
    "abstained/unanswerable": "Abstained, unanswerable",
    "every_wording": "Every wording right",
}
AT_FLOOR, AT_CEILING = "at the floor", "at the ceiling"


def floor(evidence: Evidence, task: str, context: str) -> dict[str, Any] | None:
    """The floor of a prepared task (tasks.base.Cell): ``value`` and ``of``; None where it names none."""
    path = evidence.paths.prepared(task, context) / "view.json"
    return read_json(path).get("floor") if path.exists() else None


def where_it_stands(row: dict[str, Any], lowest: float) -> str:
    """Whether a score can be told from its floor, and whether anything is left to gain."""
    if row["low"] <= lowest:
        return AT_FLOOR
    return AT_CEILING if row["value"] >= 1 else ""


def tables(evidence: Evidence) -> Iterator[Table]:
    """One table of all cells whose task names a floor; none where there is no such task."""
    rows, raw = [], []
    for system, task, context in evidence.cells():
        lowest = floor(evidence, task, context)
        if lowest is None:
            continue
        row = evidence.point(system, task, context)
        stands = where_it_stands(row, lowest["value"]) if row else ""
        own = [value_field(evidence, system, task, context, metric) for metric in OWN_METRICS]
        known = [(system, task, context, metric) in evidence.summary for metric in OWN_METRICS]
        rows.append(
            [
                Field(evidence.title(task)),
                Field(evidence.title(system)),
                Field(context),
                value_field(evidence, system, task, context),
                Field(f"{lowest['value']:.3f}", lowest["of"]),
                Field(stands, tone="bad" if stands == AT_FLOOR else "unsure" if stands else ""),
                *(field if there else Field("") for field, there in zip(own, known, strict=True)),
            ]
        )
        values = [evidence.point(system, task, context, metric) for metric in ("accuracy", *OWN_METRICS)]
        raw.append((task, system, context, lowest["value"], lowest["of"], stands, *(v and v["value"] for v in values)))
    if rows:
        columns = ["task", "system", "context", "floor", "floor_of", "stands", "accuracy", *OWN_METRICS]
        header = ["Task", "System", "Memory", "Accuracy", "Floor", "", *OWN_METRICS.values()]
        yield Table("scenarios", "Scores beside their floors", header, rows, pd.DataFrame(raw, columns=columns))
