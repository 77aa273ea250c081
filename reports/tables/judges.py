"""The judges' points, how far two judges agree and each follows F1, what each gives to answers that are known to be
right, wrong or empty, and what judging took; no tables where no judge was asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd

from msa_base.stage_records import JudgedRecord
from reports.evidence import CellKey, Evidence
from reports.statistics import mean_interval, quadratic_kappa, rank_correlation
from reports.tables.table import Column, IntervalColumn, Table, plain, summary_table

F1 = "f1"
PASSED = 4  # points: all core information is there
COUNTS = ("requests", "kept", "retries", "input_tokens", "output_tokens")


def tables(evidence: Evidence) -> Iterator[Table]:
    """Points of every judged cell, agreement over all of them, the probes of the judges, and what judging took."""
    asked = evidence.experiment.profile.judges
    judges = {judge: "judge" if judge == asked[0] else f"judge/{judge}" for judge in asked}
    judged = [cell for cell in evidence.cells() if any(evidence.values(cell, name).size for name in judges.values())]
    if judged:
        metrics = [*judges.values(), F1]
        rows = [row for cell in judged for metric in metrics if (row := evidence.point(cell, metric))]
        yield summary_table("judgments", "Judged answers, 0 to 5 points, beside F1", evidence, rows)
        values = [_judged(evidence, cell, metrics) for cell in judged]
        yield _agreement(judges, pd.concat(values))
    yield from probe_tables(evidence)
    if probed := _probed(evidence):
        judged = [
            evidence.paths.task(*names) / "judgments.json"
            for names in product(evidence.systems, evidence.experiment.profile.tasks)
        ]
        yield _cost(asked, [*probed.values(), *(JudgedRecord.open(seal) for seal in judged if seal.exists())])


def probe_tables(evidence: Evidence) -> list[Table]:
    """What the judges give to answers that are known, where they were probed."""
    lines = [line for seal in _probed(evidence) for line in seal.with_name("probes.jsonl").read_text().splitlines()]
    rows = pd.DataFrame(map(json.loads, lines), columns=["judge", "probe", "value"])
    return [_probes(evidence.experiment.profile.judges, rows)] if _probed(evidence) else []


def _probed(evidence: Evidence) -> dict[Path, JudgedRecord]:
    """The seals of the probes that are there."""
    profile = evidence.experiment.profile
    seals = [evidence.paths.probes(task) for task in profile.tasks if profile.judges]
    return {seal: JudgedRecord.open(seal) for seal in seals if seal.exists()}


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


def _probes(judges: list[str], rows: pd.DataFrame) -> Table:
    """How often each judge passes answers of each sort, and the points that it gives them."""
    found = []
    for judge, sort in product(judges, dict.fromkeys(rows["probe"])):
        values = rows[(rows["judge"] == judge) & (rows["probe"] == sort)]["value"].astype(float)
        known = values.dropna()
        if len(known):
            passed = mean_interval((known >= PASSED).astype(float))
            found.append((judge, sort, passed, float(known.mean()), len(known), len(values) - len(known)))
    columns = [*plain(judge="Judge", sort="Answer"), IntervalColumn("passed", f"Given {PASSED} points or more")]
    columns += [Column("points", "Mean points", ".2f"), *plain(n="Answers", failed="Failed judgments")]
    return Table("probes", "What the judges give to answers that are known", columns, found)


def _cost(judges: list[str], records: list[JudgedRecord]) -> Table:
    """What judging took; a reply that was kept from an earlier run is in ``kept`` alone."""
    rows = []
    for judge in judges:
        found = [record.usage[judge] for record in records if judge in record.usage]
        counts = sum((Counter({name: usage[name] for name in COUNTS}) for usage in found), Counter())
        prices = [usage["cost_usd"] for usage in found]
        rows.append((judge, *(counts[name] for name in COUNTS), None if None in prices else sum(prices)))
    columns = plain(judge="Judge", requests="Requests", kept="Kept replies", retries="Retries")
    columns += [*plain(input_tokens="Tokens in", output_tokens="Tokens out"), Column("cost_usd", "Dollars", ".2f")]
    return Table("judging_cost", "What judging took", columns, rows)
