"""Leaderboards: the systems at one task and memory size, the best first, each with its interval."""

from __future__ import annotations

from collections.abc import Iterator

from reports.evidence import CellKey, Evidence
from reports.tables.table import Column, IntervalColumn, Table, cell_columns, plain, words


def leaderboards(evidence: Evidence) -> Iterator[Table]:
    """A table a task, at the largest context where any system has a score; no table where none has."""
    for task in evidence.compared_tasks:
        measured = [
            context
            for context in evidence.contexts
            if any(evidence.point(CellKey(system, task, context)) for system in evidence.systems)
        ]
        if measured:
            yield leaderboard(evidence, task, measured[-1])


def leaderboard(evidence: Evidence, task: str, context: str) -> Table:
    """The systems by score; equal scores share a place, ceiling and floor have none, what has no score is last."""
    found = [(system, evidence.row(CellKey(system, task, context))) for system in evidence.systems]
    scored = [(system, row) for system, row in found if row and row.value is not None]
    specs = evidence.experiment.systems
    ranked = [row.value for system, row in scored if not _outside(specs[system])]
    rows = []
    for system, row in sorted(scored, key=lambda item: -item[1].value):
        outside = _outside(specs[system])
        place = outside or 1 + sum(value > row.value for value in ranked)
        rows.append((task, context, place, system, row, row.n, row.failures, row.status))
    for system, row in found:
        if (system, row) not in scored:
            status = row.status if row else evidence.status(CellKey(system, task, context))
            rows.append((task, context, None, system, None, 0, None, status))
    columns = [
        *(Column(name) for name in ("task", "context")),
        Column("place", "Place"),
        *cell_columns(evidence, "system"),
        IntervalColumn("value", "Score"),
        *plain(n="n", failures="Failed"),
        Column("status", "Status", lambda status: "" if status == "ok" else words(status)),
    ]
    return Table(f"leaderboard_{task}", f"{evidence.title(task)}, {context} tokens", columns, rows)


def _outside(spec) -> str:
    """Why a system is no rival: it reads the gold documents, or no memory at all."""
    return "ceiling" if spec.reads_gold else "floor" if spec.kind == "closed_book" else ""
