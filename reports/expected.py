"""The scores a profile should reach (expected.yaml): a check that the code still works, no claim about the method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msa_base.errors import UserError
from msa_base.validate import Distinct, Text, read_checked
from reports.evidence import NOT_MEASURED, CellKey, Evidence, SummaryRow
from reports.published.reference import UNITS, Figure, Side, Statistic
from reports.statistics import Interval, compare
from reports.tables.table import Column, IntervalColumn, Table, figure, plain

EXPECTED = Path(__file__).parent / "published" / "expected.yaml"
MET, MISSED = "met", "missed"


@dataclass(frozen=True)
class Expectation:
    """One number that a profile should reach; expected.yaml says what the fields mean."""

    title: Text
    system: str
    task: str
    context: str
    metric: str = "accuracy"
    statistic: Statistic | None = None
    against: Side | None = None
    low: bool = False
    at_least: Figure | None = None
    at_most: Figure | None = None

    @property
    def unit(self) -> str:
        """Suffix of the expectation's numbers."""
        return UNITS[self.statistic] if self.statistic else ""

    @property
    def target(self) -> str:
        """The bound in words."""
        bound = f"at least {self.at_least:g}" if self.at_most is None else f"at most {self.at_most:g}"
        return bound + self.unit


@dataclass(frozen=True)
class ExpectationResult:
    """An expectation, what was measured (None: nothing yet) and whether it is met."""

    expectation: Expectation
    measured: Interval | SummaryRow | None
    verdict: str


def read_expected(path: Path | None = None) -> dict[str, list[Expectation]]:
    """The expectations of each profile that has any; a UserError for an unknown key or not exactly one bound."""
    path = path or EXPECTED
    found = read_checked(dict[str, Annotated[list[Expectation], Distinct]], path)
    for profile, expectations in found.items():
        for number, expectation in enumerate(expectations):
            where = f"{path}: {profile}[{number}]"
            if (expectation.at_least is None) == (expectation.at_most is None):
                raise UserError(f"{where}: needs one of the keys 'at_least' and 'at_most'")
            if (expectation.statistic is None) != (expectation.against is None):
                raise UserError(f"{where}: the keys 'statistic' and 'against' go together")
    return found


def check(evidence: Evidence) -> list[ExpectationResult]:
    """The outcome of every expectation of the evidence's profile."""
    found = []
    for expectation in read_expected().get(evidence.experiment.name, []):
        measured, verdict = _measure(evidence, expectation), NOT_MEASURED
        if measured is not None:
            reached = measured.low if expectation.low else measured.value
            at_most = expectation.at_most
            verdict = MET if (reached >= expectation.at_least if at_most is None else reached <= at_most) else MISSED
        found.append(ExpectationResult(expectation, measured, verdict))
    return found


def _measure(evidence: Evidence, expectation: Expectation) -> Interval | SummaryRow | None:
    if expectation.statistic is None:
        cell = CellKey(expectation.system, expectation.task, expectation.context)
        return evidence.point(cell, expectation.metric)
    sides = (expectation.system, expectation.context), (expectation.against.system, expectation.against.context)
    pairs = evidence.pairs(evidence.members(expectation.task), *sides, expectation.metric)
    return compare(expectation.statistic, *pairs) if pairs else None


def table(results: Iterable[ExpectationResult]) -> Table:
    """Each score that the profile should reach beside what was measured."""
    columns = [
        *plain(title="Number", target="Expected"),
        IntervalColumn("measured", "Measured", figure),
        Column("unit", "Unit"),
        Column("verdict", "Verdict", tone={MET: "good", MISSED: "bad", NOT_MEASURED: "none"}.__getitem__),
    ]
    entries = [(result.expectation, result) for result in results]
    rows = [(it.title, it.target, result.measured, it.unit.strip(), result.verdict) for it, result in entries]
    return Table("expected", "What this profile should reach", columns, rows)
