"""Make summary.parquet: a row a cell and metric, with unit, questions, failures, value, 95 % interval and status.

A cell that failed or has not run keeps a row: its value is null and its status says why. Example::

    python -m reports.summarise --profile tiny
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product

import numpy as np

from msa_base.command import experiment_parser
from msa_base.errors import run_command
from msa_base.seal import write_seal
from msa_base.stage_records import ContextLatency
from msa_base.stages import Stages
from msa_base.tables import write_table
from reports.evidence import ACCURACY, LATENCY, NEEDLE_MEAN, NOT_MEASURED, CellKey, Evidence, SummaryRow
from reports.statistics import Interval, macro_interval, mean_interval

RUN_COSTS = ("build_s", "ingest_s", "wall_s", "peak_host_bytes", "peak_device_bytes", "index_bytes")  # of a RunRecord
LATENCY_COSTS = ("open_s", "ingest_s", "peak_host_bytes", "index_bytes")  # of a ContextLatency, beside its times
Found = Interval | float | None
POINTS = {"judge": 5.0}  # metrics on a scale of their own, and its end; all others are shares


def unit(metric: str) -> str:
    """The unit of a metric, told from its name: ``s``, ``bytes``, ``tokens``, ``points`` or ``share``."""
    name = metric.removeprefix(f"{LATENCY}/").split("/")[0]
    if name in POINTS:
        return "points"
    ending = name.rpartition("_")[2] if "_" in name else ""
    return ending if ending in ("s", "bytes", "tokens") else "share"


def summarise(evidence: Evidence) -> list[SummaryRow]:
    """All rows of the summary, in the profile's order."""
    rows = [row for cell in evidence.cells() for row in _cell_rows(evidence, cell)]
    if evidence.needle_tasks:
        rows += [_needle_mean(evidence, *side) for side in product(evidence.systems, evidence.contexts)]
    return [*rows, *_latency_rows(evidence)]


def _row(
    evidence: Evidence, cell: CellKey, metric: str, status: str, n: int, failures: int | None, found: Found = None
) -> SummaryRow:
    tokens = evidence.experiment.contexts[cell.context]
    ends = (found.value, found.low, found.high) if isinstance(found, Interval) else (found, None, None)
    return SummaryRow(*cell, tokens, metric, unit(metric), n, failures, *ends, status)


def _cell_rows(evidence: Evidence, cell: CellKey) -> Iterator[SummaryRow]:
    status = evidence.status(cell)
    metrics = evidence.metrics(cell)
    if not metrics:
        yield _row(evidence, cell, ACCURACY, status, 0, _unanswered(evidence, cell))
    failed = _failed_questions(evidence, cell) if metrics else set()
    for metric in metrics:
        values = evidence.values(cell, metric)
        known = values.dropna()
        failures = len(failed | set(values.index[values.isna()]))
        scale, heads = POINTS.get(metric.split("/")[0], 1.0), evidence.heads(cell.task, cell.context, known.index)
        interval = mean_interval(known.to_numpy(), scale, heads) if len(known) else None
        yield _row(evidence, cell, metric, status, len(known), failures, interval)
    for cost in RUN_COSTS:
        found = [spent for run in evidence.runs.get(cell, []) if (spent := getattr(run, cost)) is not None]
        if found:
            # a peak is the worst seed's, a time the mean of all
            value = float(max(found) if cost.endswith("_bytes") else np.mean(found))
            yield _row(evidence, cell, cost, status, len(found), 0, value)


def _failed_questions(evidence: Evidence, cell: CellKey) -> set[str]:
    """Questions that a seed answered with another status than ok. They stay in every mean."""
    return {answer.question_id for answer in evidence.predictions(cell) if answer.status != "ok"}


def _unanswered(evidence: Evidence, cell: CellKey) -> int | None:
    """How many questions a failed cell leaves open; None for one that has not run."""
    return evidence.questions(cell) if cell in evidence.runs else None


def _needle_mean(evidence: Evidence, system: str, context: str) -> SummaryRow:
    """The mean over the eight needle tasks, or the reason why there is none."""
    cells = [CellKey(system, task, context) for task in evidence.needle_tasks]
    mean = CellKey(system, NEEDLE_MEAN, context)
    strata = [evidence.values(cell).dropna() for cell in cells]
    statuses = Counter(status for status in map(evidence.status, cells) if status != "ok")
    status = statuses.most_common(1)[0][0] if statuses else "ok"
    if not all(len(stratum) for stratum in strata):
        unanswered = sum(_unanswered(evidence, cell) or 0 for cell in cells)
        return _row(evidence, mean, ACCURACY, status, 0, unanswered if status != NOT_MEASURED else None)
    failures = sum(len(_failed_questions(evidence, cell)) for cell in cells)
    heads = [evidence.heads(cell.task, context, stratum.index) for cell, stratum in zip(cells, strata, strict=True)]
    interval = macro_interval([stratum.to_numpy() for stratum in strata], heads)
    return _row(evidence, mean, ACCURACY, status, interval.n, failures, interval)


def _latency_rows(evidence: Evidence) -> Iterator[SummaryRow]:
    for (system, record), context in product(evidence.latency.items(), evidence.contexts):
        if measured := record.contexts.get(context):
            cell = CellKey(system, record.task, context)
            for cost, value in _costs(measured).items():
                known = None if value is None else float(value)
                yield _row(evidence, cell, f"{LATENCY}/{cost}", measured.status, measured.n or 0, 0, known)


def _costs(measured: ContextLatency) -> dict[str, float | None]:
    """What was measured of one context, by the cost's name in the summary."""
    times = {"first_token_s": measured.first_token_s, "total_s": measured.total_s}
    return {
        **{f"{name}/{end}": at and getattr(at, end) for name, at in times.items() for end in ("median", "p90")},
        **{f"stage_s/{stage}": seconds for stage, seconds in measured.stage_s.items()},
        **{cost: getattr(measured, cost) for cost in LATENCY_COSTS},
    }


def main() -> None:
    """Summarise one profile."""
    arguments = experiment_parser(__doc__).parse_args()
    evidence = Evidence.named(arguments)
    rows = summarise(evidence)
    write_table("summary", map(asdict, rows), evidence.paths.summary)
    seal = evidence.paths.summary.with_suffix(".json")
    write_seal(seal, Stages(evidence.experiment).summary(), [evidence.paths.summary.name])
    measured = sum(row.value is not None for row in rows)
    print(f"{evidence.paths.summary}: {len(rows)} rows, {measured} with a value")


if __name__ == "__main__":
    run_command(main)
