"""The judges' points, how far two judges agree, and how far each follows F1; no tables where no judge was asked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from reports.evidence import CellKey, Evidence
from reports.statistics import quadratic_kappa, rank_correlation
from reports.tables.table import IntervalColumn, Table, plain, summary_table

F1 = "f1"


def tables(evidence: Evidence) -> Iterator[Table]:
    """Points of every judged cell, and agreement over all of them."""
    asked = evidence.experiment.profile.judges
    judges = {judge: "judge" if judge == asked[0] else f"judge/{judge}" for judge in asked}
    judged = [cell for cell in evidence.cells() if any(evidence.values(cell, name).size for name in judges.values())]
    if judged:
        metrics = [*judges.values(), F1]
        rows = [row for cell in judged for metric in metrics if (row := evidence.point(cell, metric))]
        yield summary_table("judgments", "Judged answers, 0 to 5 points, beside F1", evidence, rows)
        values = [_judged(evidence, cell, metrics) for cell in judged]
        yield _agreement(judges, pd.concat(values))


def _judged(evidence: Evidence, cell: CellKey, metrics: list[str]) -> pd.DataFrame:
    """The metrics of a cell's questions, each under its head: systems answer the same questions."""
    values = pd.DataFrame({metric: evidence.values(cell, metric) for metric in metrics})
    heads = evidence.heads(cell.task, cell.context, values.index)
    return values.set_axis([f"{cell.task}/{head}" for head in heads])


def _agreement(judges: dict[str, str], questions: pd.DataFrame) -> Table:
    """A row for each judge against F1 and for each pair of judges."""
    names = {metric: judge for judge, metric in judges.items()} | {F1: "F1"}
    pairs = [((metric, F1), "rank correlation", rank_correlation) for metric in judges.values()]
    pairs += [(both, "quadratic weighted kappa", quadratic_kappa) for both in combinations(judges.values(), 2)]
    rows = []
    for (one, other), name, statistic in pairs:
        known = questions[[one, other]].dropna()
        found = statistic(known.to_numpy(), known.index) if len(known) else None
        failed = int(questions[[metric for metric in (one, other) if metric != F1]].isna().any(axis=1).sum())
        defined = found if found and not np.isnan(found.value) else None
        rows.append((f"{names[one]} and {names[other]}", name, defined, len(known), failed))
    columns = [*plain(between="Between", statistic="Statistic"), IntervalColumn("value", "Value")]
    columns += plain(n="Questions", failed="Failed judgments")
    return Table("agreement", "Agreement of the judges", columns, rows)
