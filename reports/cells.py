"""The status of every cell: as a grid for the page, a frame for the CSV, and a count of what has no score."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from reports.evidence import NOT_MEASURED, Evidence

LETTERS = {
    "ok": "",
    "unsupported_context": "L",
    "out_of_memory": "M",
    "timeout": "T",
    "unavailable_data": "D",
    NOT_MEASURED: "",
}


def grid(evidence: Evidence) -> list[dict[str, Any]]:
    """Status of every cell: a row a system, in it a list a task of (context, status, letter, reason)."""
    profile, rows = evidence.experiment.profile, []
    for system in profile.systems:
        groups = []
        for task in profile.tasks:
            cells = [(system, task, context) for context in profile.contexts]
            reasons = [evidence.runs.get(cell, [{}])[0].get("reason") or "" for cell in cells]
            statuses = [evidence.status(cell) for cell in cells]
            groups.append(
                [
                    (cell[2], status, LETTERS.get(status, "?"), reason)
                    for cell, status, reason in zip(cells, statuses, reasons, strict=True)
                ]
            )
        rows.append({"title": evidence.title(system), "tasks": groups})
    return rows


def failed(evidence: Evidence) -> list[tuple[str, int, list[str]]]:
    """Statuses other than ok, how many cells have each, and the systems concerned."""
    found: dict[str, list[str]] = {}
    for cell in evidence.cells():
        status = evidence.status(cell)
        if status != "ok":
            found.setdefault(status, []).append(cell[0])
    return [(status, len(systems), list(dict.fromkeys(systems))) for status, systems in found.items()]


def _problems(run: dict[str, Any]) -> int | None:
    """How many problems the audit of a cell's prompts met; None where there was none."""
    audit = run.get("audit")
    return None if audit is None else sum(audit["problems"].values())


def prompts(evidence: Evidence) -> list[str]:
    """What the audits of all cells say, and how many answers were cut at their budget or read less than was chosen."""
    runs = [run for found in evidence.runs.values() for run in found]
    audits = [run["audit"] for run in runs if run.get("audit")]
    if not audits:
        return []
    met: Counter[str] = Counter()
    for audit in audits:
        met.update(audit["problems"])
    lines = [f"{sum(audit['checked'] for audit in audits)} prompts checked, {sum(met.values())} problems"]
    lines += [f"{count} {problem}" for problem, count in met.most_common()]
    for key, words in (("truncated", "answers cut at their budget"), ("left_out", "questions with chosen documents left out")):
        lines.append(f"{sum(run.get(key) or 0 for run in runs)} {words}")
    return lines


def frame(evidence: Evidence) -> pd.DataFrame:
    """Status, reason and counts of every cell (CSV; the page draws it as a grid)."""
    rows = []
    for cell in evidence.cells():
        runs = evidence.runs.get(cell, [{}])
        rows.append(
            (
                *cell,
                evidence.status(cell),
                runs[0].get("reason") or "",
                evidence.questions(cell),
                runs[0].get("n"),
                runs[0].get("failures"),
                runs[0].get("truncated"),
                runs[0].get("left_out"),
                _problems(runs[0]),
                runs[0].get("wall_s"),
                " ".join(map(str, (runs[0].get("chunking") or {}).values())),
            )
        )
    return pd.DataFrame(
        rows,
        columns=[
            "system",
            "task",
            "context",
            "status",
            "reason",
            "questions",
            "answered",
            "failures",
            "truncated",
            "left_out",
            "prompt_problems",
            "wall_s",
            "chunking",
        ],
    )
