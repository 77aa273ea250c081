"""The scores a profile should reach (expected.yaml): a check that the code still works, not a claim about the method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.load import build, read_yaml
from reports.claims import UNITS, Side
from reports.evidence import Evidence
from reports.statistics import STATISTICS, Interval

EXPECTED = Path(__file__).parent / "expected.yaml"
MET, MISSED, OPEN = "met", "missed", "not measured"


@dataclass(frozen=True)
class Expectation:
    """One number that a profile should reach; expected.yaml says what the fields mean."""

    title: str
    system: str
    task: str
    context: str
    metric: str = "accuracy"
    statistic: str | None = None
    against: Side | None = None
    low: bool = False
    at_least: float | None = None
    at_most: float | None = None

    @property
    def unit(self) -> str:
        """Suffix of the expectation's numbers."""
        return UNITS[self.statistic] if self.statistic else ""

    @property
    def target(self) -> str:
        """The bound in words."""
        return (
            f"at least {self.at_least:g}{self.unit}" if self.at_most is None else f"at most {self.at_most:g}{self.unit}"
        )


@dataclass(frozen=True)
class Outcome:
    """An expectation, what was measured (None: nothing yet) and whether it is met."""

    expectation: Expectation
    measured: Interval | None
    verdict: str


def read_expected(profile: str, path: Path = EXPECTED) -> list[Expectation]:
    """The expectations of a profile; none for a profile without an entry.

    Raises:
        UserError: an unknown key, or an entry without exactly one bound.
    """
    found = []
    for number, entry in enumerate(read_yaml(path).get(profile, [])):
        where = f"{path}: {profile}[{number}]"
        against = {"against": build(Side, entry["against"], f"{where}: against")} if "against" in entry else {}
        expectation: Expectation = build(Expectation, {**entry, **against}, where)
        if (expectation.at_least is None) == (expectation.at_most is None):
            raise UserError(f"{where}: needs one of the keys 'at_least' and 'at_most'")
        if (expectation.statistic is None) != (expectation.against is None):
            raise UserError(f"{where}: the keys 'statistic' and 'against' go together")
        found.append(expectation)
    return found


def check(evidence: Evidence) -> list[Outcome]:
    """The outcome of every expectation of the evidence's profile."""
    return [_outcome(evidence, expectation) for expectation in read_expected(evidence.experiment.name)]


def _outcome(evidence: Evidence, expectation: Expectation) -> Outcome:
    measured = _measure(evidence, expectation)
    if measured is None:
        return Outcome(expectation, None, OPEN)
    reached = measured.low if expectation.low else measured.value
    met = reached >= expectation.at_least if expectation.at_most is None else reached <= expectation.at_most
    return Outcome(expectation, measured, MET if met else MISSED)


def _measure(evidence: Evidence, expectation: Expectation) -> Interval | None:
    if expectation.statistic is None:
        row = evidence.point(expectation.system, expectation.task, expectation.context, expectation.metric)
        return Interval(row["value"], row["low"], row["high"], row["n"], "") if row else None
    sides = (expectation.system, expectation.context), (expectation.against.system, expectation.against.context)
    pairs = evidence.pairs(evidence.members(expectation.task), *sides, expectation.metric)
    if not pairs:
        return None
    found = STATISTICS[expectation.statistic](pairs)
    return found if expectation.statistic == "ratio" else found.scaled(100)
