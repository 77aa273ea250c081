"""The ledger: every published claim, what decides it or where its figure is, its verdict and the tests that hold it."""

from __future__ import annotations

from collections.abc import Iterable

from reports.claims import TONES, Finding, percent
from reports.evidence import NOT_MEASURED
from reports.published.reference import Ledger
from reports.tables.table import Column, IntervalColumn, Table, figure, plain


def ledger(findings: Iterable[Finding], published: Ledger) -> Table:
    """A row an entry of ledger.yaml, family by family."""
    columns = [
        *plain(claim="", family="", title="Claim"),
        Column("verdict", "Verdict", tone=TONES.__getitem__),
        Column("published_text", "Published"),
        IntervalColumn("measured", "Measured", figure),
        *plain(unit="Unit", n="n", level="Level", where="Where, how, or why not", criterion="Holds if the interval is"),
        *plain(needed="What would decide", tests="Held by tests", source="Source"),
    ]
    rows = []
    for it in findings:
        claim, found = it.claim, it.measured
        named = it.name, claim.family, claim.title, it.verdict, f"{claim.published:g}{claim.unit}"
        measured = found, claim.unit.strip(), found and found.n, percent(it.level), it.where or it.remark
        rows.append((*named, *measured, claim.criterion, it.needed, _tests(claim.tests), claim.source))
    for name, it in published.statements.items():
        named = name, it.family, it.title, NOT_MEASURED, it.published
        rows.append((*named, None, "", None, "", it.how, "", "", _tests(it.tests), it.source))
    order = list(published.families)
    return Table("ledger", "Ledger of all claims", columns, sorted(rows, key=lambda row: order.index(row[1])))


def _tests(names: Iterable[str]) -> str:
    """Tests by their functions alone, which are sentences."""
    return "; ".join(name.partition("::")[2].removeprefix("test_").replace("_", " ") for name in names)
