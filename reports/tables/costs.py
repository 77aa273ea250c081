"""Tables of costs: time and memory of an answer, how they grow, where the time goes, and what the searches found."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from msa_base.stage_records import Trial
from reports.evidence import LATENCY, CellKey, Evidence, SummaryRow
from reports.statistics import LEVEL, Interval, slope_interval
from reports.tables.table import Column, IntervalColumn, Table, bytes_text, cell_columns, plain, seconds_text

COSTS = {
    "first_token_s/median": ("First token, median", seconds_text),
    "total_s/median": ("Answer, median", seconds_text),
    "total_s/p90": ("Answer, 90th percentile", seconds_text),
    "peak_host_bytes": ("Peak host memory", bytes_text),
    "index_bytes": ("Index", bytes_text),
}


def cost(evidence: Evidence) -> Table:
    """Latency, memory and index size of each system at every measured context."""
    rows = []
    for system, record in evidence.latency.items():
        for context in evidence.contexts:
            cell = CellKey(system, record.task, context)
            points = [evidence.point(cell, f"{LATENCY}/{name}") for name in COSTS]
            if any(points):
                rows.append((system, context, *(found and found.value for found in points)))
    costs = [Column(name, title, show) for name, (title, show) in COSTS.items()]
    columns = [*cell_columns(evidence, "system", "context"), *costs]
    return Table("cost", "Cost of an answer", columns, rows)


def growth(evidence: Evidence) -> Table:
    """The exponent with which each cost grows with the memory, from three contexts at least."""
    rows = []
    for system in evidence.latency:
        for name, (title, _) in COSTS.items():
            if grown := slope(evidence, system, f"{LATENCY}/{name}"):
                found, first, last = grown
                rows.append((system, name, title, first, last, found, found.units, found.n))
    columns = [
        *cell_columns(evidence, "system"),
        *plain(metric="", cost="Cost", **{"from": "From", "to": "To"}),
        IntervalColumn("slope", "Exponent", ".2f"),
        *plain(contexts="Contexts", timings="Figures"),
    ]
    return Table("growth", "How cost grows: the exponent of the memory's size", columns, rows)


def slope(evidence: Evidence, system: str, metric: str, level: float = LEVEL) -> tuple[Interval, str, str] | None:
    """The exponent of a cost from the first to the last context that has it; None with fewer than three.

    A median has the timings of every question behind it where they are kept; any other cost is one figure a context.
    """
    record = evidence.latency[system]
    points = positive(evidence.points(system, record.task, metric))
    if len(points) < 3:
        return None
    cost, _, figure = metric.removeprefix(f"{LATENCY}/").partition("/")
    sizes, costs = [], []
    for row in points:
        timings = record.contexts[row.context].timings_s.get(cost, []) if figure == "median" else []
        figures = timings if timings and min(timings) > 0 else [row.value]
        costs += figures
        sizes += [row.context_tokens] * len(figures)
    return slope_interval(sizes, costs, level), points[0].context, points[-1].context


def positive(rows: Iterable[SummaryRow]) -> list[SummaryRow]:
    """The rows that a logarithm can take."""
    return [row for row in rows if row.value > 0]


def stages(evidence: Evidence) -> Table:
    """Where the time of an answer goes, at the largest context with a measurement."""
    rows = []
    for system, record in evidence.latency.items():
        measured = [context for context in evidence.contexts if (at := record.contexts.get(context)) and at.stage_s]
        if measured:
            spent = record.contexts[measured[-1]].stage_s
            total = sum(spent.values()) or 1.0
            for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
                rows.append((system, measured[-1], name, seconds, seconds / total))
    columns = [
        *cell_columns(evidence, "system", "context"),
        Column("stage", "Stage"),
        Column("median_s", "Median", seconds_text),
        Column("share", "Share", ".0%"),
    ]
    return Table("stages", "Where the time of an answer goes", columns, rows)


def time(evidence: Evidence) -> Table:
    """Each system's share of the time that all answers took, its indexes, and what served models cost in both."""
    runs = evidence.runs_of_systems()
    spent = {system: sum(run.wall_s or 0.0 for run in found) for system, found in runs.items()}
    total = sum(spent.values()) or 1.0
    rows = []
    for system, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        records = [*runs[system], *evidence.indexes([system], evidence.experiment.profile.tasks)]
        uses = [use for record in records for use in (record.usage or {}).values() if "requests" in use]
        prices = [use["cost_usd"] for use in uses]
        dollars = None if None in prices or not prices else sum(prices)
        requests = sum(use["requests"] for use in uses)
        rows.append((system, seconds, seconds / total, evidence.build_s(system), requests, dollars))
    columns = [
        *cell_columns(evidence, "system"),
        Column("answering_s", "Answering", seconds_text),
        Column("share", "Share of answering", ".1%"),
        Column("index_s", "Its indexes", seconds_text),
        Column("served_requests", "Served requests", ","),
        Column("served_usd", "Their cost", lambda dollars: f"${dollars:.2f}"),
    ]
    return Table("time", "Where the time of the evaluation went", columns, rows)


def tuning(evidence: Evidence) -> Table:
    """What the searches on the tuning split found: the best setting beside the one that was evaluated."""
    rows, tried = [], []
    for system, record in evidence.tuning.items():
        known = [trial for trial in record.rows if trial.correct is not None]
        best = max(known, key=lambda trial: trial.correct, default=None)
        own = next((trial for trial in known if trial.params == record.entry), None)
        rows.append((system, *_trial(best), *_trial(own), record.questions, record.tokens))
        tried += [(system, str(it.params), it.correct, it.recall, it.seconds, it.status) for it in record.rows]
    columns = [
        *cell_columns(evidence, "system"),
        Column("best", "Best of the search", ".3f"),
        Column("best_params", "Its settings"),
        Column("own", "As evaluated", ".3f"),
        Column("own_params", "Its settings"),
        Column("questions", "Questions"),
        Column("tokens", "Over tokens", ","),
    ]
    csv = pd.DataFrame(tried, columns=["system", "params", "correct", "recall", "seconds", "status"])
    return Table("tuning", "Tuning, on a split of its own", columns, rows, csv)


def _trial(trial: Trial | None) -> tuple[float | None, str | None]:
    """Its score and settings; None where the setting is not among the values that were tried."""
    return (trial.correct, ", ".join(f"{k} {v}" for k, v in trial.params.items())) if trial else (None, None)
