"""The status of every cell: as a grid for the page, a table for the CSV, and a count of what has no score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from reports.evidence import NOT_MEASURED, CellKey, Evidence
from reports.tables.table import Column, Table, words

Usage = dict[str, dict[str, Any]]  # of a record, by role
LETTERS = {
    "ok": "",
    "unsupported_context": "L",
    "out_of_memory": "M",
    "timeout": "T",
    "unavailable_data": "D",
    "interrupted": "I",
    NOT_MEASURED: "",
}


def grid(evidence: Evidence) -> dict[str, list[list[tuple[CellKey, str, str, str]]]]:
    """The cells of each system, by its title: a list a task, and key, status, letter and reason of each cell."""
    found: dict[str, dict[str, list[tuple[CellKey, str, str, str]]]] = {}
    for cell in evidence.cells():
        runs, status = evidence.runs.get(cell), evidence.status(cell)
        shown = cell, status, LETTERS.get(status, "?"), runs[0].reason if runs else ""
        found.setdefault(evidence.title(cell.system), {}).setdefault(cell.task, []).append(shown)
    return {title: list(tasks.values()) for title, tasks in found.items()}


def failed(evidence: Evidence) -> list[tuple[str, int, list[str]]]:
    """Statuses other than ok, how many cells have each, and their systems."""
    found: dict[str, list[str]] = {}
    for cell in evidence.cells():
        if (status := evidence.status(cell)) != "ok":
            found.setdefault(status, []).append(cell.system)
    return [(status, len(systems), list(dict.fromkeys(systems))) for status, systems in found.items()]


def prompts(evidence: Evidence) -> list[str]:
    """What the audits of prompts found, and how many answers were cut at their budget or read less than was chosen."""
    runs = [run for found in evidence.runs.values() for run in found]
    audits = [run.audit for run in runs if run.audit]
    if not audits:
        return []
    built = _of_indexes(evidence, evidence.systems, evidence.experiment.profile.tasks)
    usages = [*(run.usage or {} for run in runs), *built]
    met: Counter[str] = Counter()
    for audit in audits:
        met.update(audit.problems)
    return [
        f"{sum(audit.checked for audit in audits)} prompts checked, {met.total()} problems",
        *(f"{count} {problem}" for problem, count in met.most_common()),
        f"{sum(run.truncated or 0 for run in runs)} answers cut at their budget",
        f"{sum(run.left_out or 0 for run in runs)} questions with chosen documents left out",
        *(f"{kind} of replies: {line}" for kind in ("lost", "repaired") for line in _of_replies(usages, kind)),
    ]


def _of_indexes(evidence: Evidence, systems: Iterable[str], tasks: Iterable[str]) -> list[Usage]:
    """What models were used for in building the indexes of some systems and tasks, each index once."""
    records = evidence.indexes(systems, tasks)
    return [{f"{role}, {record.index}": used for role, used in record.usage.items()} for record in records]


def _of_replies(usages: Iterable[Usage], kind: str) -> list[str]:
    """What was ``lost`` or ``repaired`` of what models replied: how often, what, and to whom."""
    met: Counter[tuple[str, str]] = Counter()
    for usage in usages:
        for role, used in usage.items():
            met.update({(role, what): count for what, count in used.get(kind, {}).items()})
    return [f"{count} {words(what)} ({role})" for (role, what), count in met.most_common()]


def statuses(evidence: Evidence) -> Table:
    """Status, reason and counts of every cell. The page shows the grid in its place."""
    rows = []
    for cell in evidence.cells():
        record, counts = next(iter(evidence.runs.get(cell, [])), None), (None,) * 9
        if record:
            problems = record.audit and sum(record.audit.problems.values())
            chunking = record.chunking and f"{record.chunking.strategy} {record.chunking.document_tokens}"
            built = _of_indexes(evidence, [cell.system], [cell.task])
            usages = [*(run.usage or {} for run in evidence.runs[cell]), *built]
            replies = ["; ".join(_of_replies(usages, kind)) for kind in ("lost", "repaired")]
            counts = record.n, record.failures, record.truncated, record.left_out, *replies, problems, record.wall_s
            counts += (chunking,)
        reason = record.reason if record else ""
        rows.append((*cell, evidence.status(cell), reason, evidence.questions(cell), *counts))
    names = [*CellKey._fields, "status", "reason", "questions", "answered", "failures", "truncated", "left_out"]
    names += ["replies_lost", "replies_repaired", "prompt_problems", "wall_s", "chunking"]
    return Table("status", "Status of every cell", list(map(Column, names)), rows)
