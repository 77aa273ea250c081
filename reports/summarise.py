"""Make summary.parquet: one row a cell and metric, with unit, questions, failures, value, 95 % interval and status.

A cell that did not end well, or has not run, keeps a row: its value is null and its status says why. Example::

    python -m reports.summarise --profile tiny
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import run_command
from configs.tables import write_table
from reports.evidence import NEEDLE_MEAN, NOT_MEASURED, Cell, Evidence
from reports.statistics import Interval, macro_interval, mean_interval

RUN_COSTS = ("build_s", "ingest_s", "wall_s", "peak_host_bytes", "peak_device_bytes", "index_bytes")
LATENCY = "latency/"  # costs measured in fresh processes, beside those of the cells themselves
POINTS = {"judge": 5.0}  # metrics on a scale of their own, and its end; all others are shares


def unit(metric: str) -> str:
    """The unit of a metric, told from its name: ``s``, ``bytes``, ``tokens``, ``points`` or ``share``."""
    name = metric.removeprefix(LATENCY).split("/")[0]
    if name in POINTS:
        return "points"
    ending = name.rpartition("_")[2] if "_" in name else ""
    return ending if ending in ("s", "bytes", "tokens") else "share"


def summarise(evidence: Evidence) -> list[dict[str, Any]]:
    """All rows of the summary, in the profile's order."""
    rows: list[dict[str, Any]] = []
    for cell in evidence.cells():
        rows.extend(_cell_rows(evidence, cell))
    if evidence.needle_tasks:
        for system in evidence.experiment.profile.systems:
            for context in evidence.experiment.profile.contexts:
                rows.append(_macro_row(evidence, system, context))
    rows.extend(_latency_rows(evidence))
    return rows


def _row(
    evidence: Evidence,
    cell: Cell,
    metric: str,
    status: str,
    n: int = 0,
    failures: int | None = None,
    interval: Interval | None = None,
    value: float | None = None,
) -> dict[str, Any]:
    system, task, context = cell
    return {
        "system": system,
        "task": task,
        "context": context,
        "context_tokens": evidence.experiment.contexts[context],
        "metric": metric,
        "unit": unit(metric),
        "n": n,
        "failures": failures,
        "value": interval.value if interval else value,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "status": status,
    }


def _cell_rows(evidence: Evidence, cell: Cell) -> Iterator[dict[str, Any]]:
    status = evidence.status(cell)
    metrics = evidence.metrics(cell)
    if not metrics:
        yield _row(evidence, cell, "accuracy", status, failures=_unanswered(evidence, cell))
    failed = _failed_questions(evidence, cell) if metrics else set()
    for metric in metrics:
        values = evidence.values(*cell, metric)
        known = values.dropna()
        failures = len(failed | set(values.index[values.isna()]))
        interval = mean_interval(known.to_numpy(), scale=POINTS.get(metric.split("/")[0], 1.0)) if len(known) else None
        yield _row(evidence, cell, metric, status, len(known), failures, interval)
    for cost in RUN_COSTS:
        found = [run[cost] for run in evidence.runs.get(cell, []) if run.get(cost) is not None]
        if found:
            # a peak is the worst seed's, a time the mean of all
            value = float(max(found) if cost.endswith("_bytes") else np.mean(found))
            yield _row(evidence, cell, cost, status, len(found), 0, value=value)


def _failed_questions(evidence: Evidence, cell: Cell) -> set[str]:
    """Questions that any seed answered with another status than ok; they stay in every mean."""
    return {answer.question_id for answer in evidence.predictions(cell) if answer.status != "ok"}


def _unanswered(evidence: Evidence, cell: Cell) -> int | None:
    """How many questions a failed cell leaves open; null for one that has not run."""
    return evidence.questions(cell) if cell in evidence.runs else None


def _macro_row(evidence: Evidence, system: str, context: str) -> dict[str, Any]:
    """The mean over the eight needle tasks, or the reason why there is none."""
    cells = [(system, task, context) for task in evidence.needle_tasks]
    strata = [evidence.values(*cell, "accuracy").dropna().to_numpy() for cell in cells]
    statuses = Counter(status for status in map(evidence.status, cells) if status != "ok")
    status = statuses.most_common(1)[0][0] if statuses else "ok"
    mean_cell = (system, NEEDLE_MEAN, context)
    if not all(len(stratum) for stratum in strata):
        open_questions = sum(_unanswered(evidence, cell) or 0 for cell in cells)
        return _row(
            evidence, mean_cell, "accuracy", status, failures=open_questions if status != NOT_MEASURED else None
        )
    failures = sum(len(_failed_questions(evidence, cell)) for cell in cells)
    interval = macro_interval(strata)
    return _row(evidence, mean_cell, "accuracy", status, interval.n, failures, interval)


def _latency_rows(evidence: Evidence) -> Iterator[dict[str, Any]]:
    for system, found in evidence.latency.items():
        for context, entry in found["contexts"].items():
            if context not in evidence.experiment.profile.contexts:
                continue
            cell = (system, found["task"], context)
            costs = {
                f"{name}/{which}": entry.get(name, {}).get(which)
                for name in ("first_token_s", "total_s")
                for which in ("median", "p90")
            }
            costs |= {f"stage_s/{stage}": seconds for stage, seconds in entry.get("stage_s", {}).items()}
            costs |= {name: entry.get(name) for name in ("open_s", "ingest_s", "peak_host_bytes", "index_bytes")}
            for name, value in costs.items():
                known = None if value is None else float(value)
                failures = None if entry["status"] == NOT_MEASURED else 0
                yield _row(evidence, cell, LATENCY + name, entry["status"], entry.get("n", 0), failures, value=known)


def main() -> None:
    """Summarise one profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--results", default="results", type=Path, help="the results directory (default: results)")
    parser.add_argument(
        "--configs", default="configs", type=Path, help="the configuration directory (default: configs)"
    )
    arguments = parser.parse_args()
    evidence = Evidence.read(arguments.profile, arguments.results, arguments.configs)
    rows = summarise(evidence)
    write_table("summary", rows, evidence.paths.summary)
    measured = sum(row["value"] is not None for row in rows)
    print(f"{evidence.paths.summary}: {len(rows)} rows, {measured} with a value")


if __name__ == "__main__":
    run_command(main)
