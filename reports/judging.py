"""The judges' points, how far two judges agree, and how far each follows F1; nothing where no judge was asked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from reports.evidence import Evidence
from reports.statistics import Interval, quadratic_kappa, rank_correlation
from reports.tables import Field, Table, value_field


def metric_of(evidence: Evidence, judge: str) -> str:
    """The name under which a judge's points are scored: the profile's first judge is ``judge``."""
    return "judge" if judge == evidence.experiment.profile.judges[0] else f"judge/{judge}"


def tables(evidence: Evidence) -> Iterator[Table]:
    """Points of every judged cell, and agreement over all of them; none where no cell is judged."""
    judges = {judge: metric_of(evidence, judge) for judge in evidence.experiment.profile.judges}
    judged = [cell for cell in evidence.cells() if any(evidence.values(*cell, name).size for name in judges.values())]
    if judged:
        yield _points(evidence, judges, judged)
        yield _agreement(evidence, judges, judged)


def _points(evidence: Evidence, judges: dict[str, str], judged: list[tuple[str, str, str]]) -> Table:
    metrics = [*judges.values(), "f1"]
    rows = [
        [
            Field(evidence.title(system)),
            Field(evidence.title(task)),
            Field(context),
            *(value_field(evidence, system, task, context, metric) for metric in metrics),
        ]
        for system, task, context in judged
    ]
    frame = pd.DataFrame(
        [row for row in evidence.summary.values() if row["metric"] in metrics and row["value"] is not None]
    )
    header = ["System", "Task", "Memory", *(f"Judge {judge}" for judge in judges), "F1"]
    return Table("judgments", "Judged answers, 0 to 5 points", header, rows, frame)


def _agreement(evidence: Evidence, judges: dict[str, str], judged: list[tuple[str, str, str]]) -> Table:
    """A row for each judge against F1 and for each pair of judges."""
    questions = pd.concat(
        [
            pd.DataFrame({metric: evidence.values(*cell, metric) for metric in [*judges.values(), "f1"]})
            for cell in judged
        ]
    )
    rows, raw = [], []

    def add(what: str, statistic: str, failed: int, found: Interval | None) -> None:
        known = found is not None and not np.isnan(found.value)
        rows.append(
            [
                Field(what),
                Field(statistic),
                Field(f"{found.value:.3f}", f"{found.low:.2f}–{found.high:.2f}") if known else Field("not defined", tone="none"),
                Field(str(found.n if found else 0)),
                Field(str(failed or "·")),
            ]
        )
        ends = (found.value, found.low, found.high) if known else (None, None, None)
        raw.append((what, statistic, *ends, found.n if found else 0, failed))

    def both(columns: list[str]) -> np.ndarray:
        return questions[columns].dropna().to_numpy()

    for judge, metric in judges.items():
        pairs = both([metric, "f1"])
        found = rank_correlation(pairs) if len(pairs) else None
        add(f"{judge} and F1", "rank correlation", int(questions[metric].isna().sum()), found)
    for (first, one), (second, other) in combinations(judges.items(), 2):
        pairs = both([one, other])
        found = quadratic_kappa(pairs) if len(pairs) else None
        failed = int(questions[[one, other]].isna().any(axis=1).sum())
        add(f"{first} and {second}", "quadratic weighted kappa", failed, found)
    columns = ["between", "statistic", "value", "low", "high", "n", "failed"]
    header = ["Between", "Statistic", "Value", "Questions", "Failed judgments"]
    return Table("agreement", "Agreement of the judges", header, rows, pd.DataFrame(raw, columns=columns))
