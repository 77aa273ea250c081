"""A table as the page shows it: every number a link to the record it came from, and what a column sorts by."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from reports import sources
from reports.evidence import CellKey, Evidence, SummaryRow
from reports.published.reference import Reference
from reports.tables.table import Table

# systems that a table is about, beside those its own columns name, by the role that they play
ABOUT = {
    "comparisons": ["ours"],
    "interleave": ["ours", "without_interleave"],
    "free_ids": ["ours", "free_ids"],
    "recall": ["ours"],
    "failures": ["ours"],
}
OF_LATENCY = {"cost", "growth", "stages"}
PUBLISHED = {"published", "source"}  # columns of what a paper says
WORDED = {"source", "where", "needed", "method"}  # columns of claims whose words hold figures


class LinkedCell(NamedTuple):
    """A cell of a row: text, tone and tooltip as a table shows them, its link, its column's title, what sorts it."""

    text: str
    tone: str
    tip: str
    link: str
    title: str
    sort: str
    number: bool


class LinkedRow(NamedTuple):
    """A row: its cells, the records of its numbers, its score and ends in percent, and whether it is MSA's."""

    fields: list[LinkedCell]
    links: list[str]
    strip: tuple[float, float, float] | None
    ours: bool


def linked(table: Table, evidence: Evidence, reference: Reference) -> list[LinkedRow]:
    """The rows of a table with their links."""
    rows = []
    for values in table.rows:
        named = {column.name: value for column, value in zip(table.columns, values, strict=True)}
        links = records(table.name, named, evidence, reference)
        published = [f"https://arxiv.org/abs/{reference.paper.arxiv}"]
        shown: list[LinkedCell] = []
        for column, value in zip(table.columns, values, strict=True):
            if column.title:
                own = sources.of(evidence, value) if isinstance(value, SummaryRow) else links
                shown += fields(column, value, published if column.name in PUBLISHED else own)
        score, strip = named.get("value"), None
        if isinstance(score, SummaryRow) and score.low is not None:
            strip = 100 * score.value, 100 * score.low, 100 * score.high
        rows.append(LinkedRow(shown, links, strip, named.get("system") == reference.played_by["ours"]))
    return rows


def fields(column: Any, value: Any, links: list[str]) -> Iterator[LinkedCell]:
    """A value as the columns of the page that are shown of it."""
    titles = [title for title in column.titles.values() if title]
    for title, shown, raw in zip(titles, column.shown(value), column.raw(value), strict=True):
        number = isinstance(raw, int | float) and not isinstance(raw, bool) and not math.isnan(raw)
        more = f"first of {len(links)} records" if number and len(links) > 1 else ""
        tip = "; ".join(filter(None, (shown.tip, more)))
        says_figure = column.name in WORDED and re.search(r"\d", shown.text)
        link = links[0] if links and (number or says_figure) else ""
        yield LinkedCell(shown.text, shown.tone, tip, link, title, _sort(shown.text, raw), number)


def _sort(text: str, raw: Any) -> str:
    """The number behind a text that says it in another way; empty where the text itself sorts."""
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        return ""
    try:
        return "" if float(text) == round(raw, 6) else f"{raw:.8g}"
    except ValueError:
        return f"{raw:.8g}"


def records(table: str, row: Mapping[str, Any], evidence: Evidence, reference: Reference) -> list[str]:
    """The records that a row came from: those of the cells that its columns name."""
    roles, profile = reference.played_by, evidence.experiment.profile
    if table == "headline":
        return sources.runs(evidence, row["of"])
    if table in ("claims", "ledger"):
        return of_claim(row, evidence, reference)
    if table == "tuning":
        return [sources.link(evidence, evidence.paths.tuning(row["system"]))]
    if table in OF_LATENCY:
        return sources.latency(evidence, row["system"])
    systems = [*([row["system"]] if "system" in row else []), *(roles[role] for role in ABOUT.get(table, []))]
    if not systems or any(system not in evidence.systems for system in systems):
        return []
    tasks = [row["task"]] if "task" in row else list(profile.tasks)
    contexts = [row["context"]] if "context" in row else profile.contexts
    return sources.runs(evidence, [CellKey(*cell) for cell in product(systems, tasks, contexts)])


def of_claim(row: Mapping[str, Any], evidence: Evidence, reference: Reference) -> list[str]:
    """The records behind the verdict on a claim: both sides at the contexts that it was measured at."""
    if row["claim"] not in reference.claims:
        return []
    claim = reference.claims[row["claim"]]
    measure = claim.measure(evidence.experiment.name)
    if measure is None:
        return []
    if claim.statistic == "slope":
        return sources.latency(evidence, claim.first.system)
    named = [word for word in re.findall(r"\w+", row["where"]) if word in evidence.contexts]
    first, second = claim.first.system, claim.second.system
    if first == second or len(named) < 2:
        sides = [(system, context) for system in dict.fromkeys((first, second)) for context in named]
    else:
        sides = list(zip((first, second), named, strict=False))
    tasks = evidence.tasks_of_role(measure.role) if measure.role else measure.tasks
    return sources.runs(evidence, [CellKey(system, task, context) for system, context in sides for task in tasks])
