"""The verdict on each published claim, from the interval of what was measured and never from the point.

``reproduced`` and ``not reproduced`` are kept for the paper's own backbone, tasks and metric; elsewhere a claim ``holds
in miniature`` or does not. Print them::

    python -m reports.claims --profile tiny
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from msa_base.command import experiment_parser
from msa_base.errors import run_command
from reports import trainings
from reports.evidence import NOT_MEASURED, CellKey, Evidence, Paired
from reports.multiplicity import adjusted_level
from reports.published.reference import Claim, Least, Reference, read_reference
from reports.statistics import LEVEL, Interval, compare, mcnemar
from reports.summarise import POINTS
from reports.tables import costs
from reports.tables.table import Column, IntervalColumn, Table, figure, infinite, plain, words

INCONCLUSIVE = "inconclusive"
EXACT = ("reproduced", "not reproduced")
MINIATURE = ("holds in miniature", "does not hold in miniature")
TONES = {
    **dict.fromkeys((EXACT[0], MINIATURE[0]), "good"),
    **dict.fromkeys((EXACT[1], MINIATURE[1]), "bad"),
    INCONCLUSIVE: "unsure",
    NOT_MEASURED: "none",
}


@dataclass(frozen=True)
class Finding:
    """A claim beside what was measured (or None): the range in words, the verdict, and why there is no number.

    ``measured`` is at the ``level`` of the claim's family. ``needed`` says of an inconclusive claim what would decide
    it, ``sign_test`` is McNemar's exact p of 0/1 scores, and ``trainings`` how the figure varies between trainings of
    the models that it stands on.
    """

    name: str
    claim: Claim
    measured: Interval | None
    where: str
    verdict: str
    remark: str = ""
    elsewhere: bool = False  # the claim's entry names other profiles
    needed: str = ""
    sign_test: float | None = None
    trainings: str = ""
    level: float | None = None  # of the interval: its family's


def verdict(claim: Claim, measured: Interval | None, exact: bool, least: Least) -> str:
    """The word for a claim.

    A bound is met or missed only by a whole interval, and from as much as a verdict needs. Exact claims must also be
    compatible with the published number: an effect that is real but wholly smaller than the published one is not
    reproduced.
    """
    if measured is None:
        return NOT_MEASURED
    if lacking(claim, measured, least):
        return INCONCLUSIVE
    yes, no = EXACT if exact else MINIATURE
    if claim.at_most is not None:
        held, missed = measured.high <= claim.at_most, measured.low > claim.at_most
    else:
        held, missed = measured.low > claim.above, measured.high <= claim.above
        missed = missed or (exact and measured.high < claim.published)
        held = held and not missed
    return yes if held else no if missed else INCONCLUSIVE


def lacking(claim: Claim, measured: Interval, least: Least) -> str:
    """What a verdict needs and the measurement has not; empty where it has enough."""
    units = measured.units or measured.n
    counts = {"questions": (measured.n, least.questions)}
    if units < measured.n:
        counts["heads"] = (units, least.heads)
    if claim.statistic == "slope":
        counts = {"sizes": (units, least.sizes), "timings a size": (measured.n // units, least.timings)}
    few = {what: both for what, both in counts.items() if both[0] < both[1]}
    return "; ".join(f"{found} {what}, a verdict needs {need}" for what, (found, need) in few.items())


def needed(claim: Claim, measured: Interval) -> str:
    """How much would decide a claim if point and spread stayed as they are: an interval narrows with the root of n."""
    bound = claim.above if claim.at_most is None else claim.at_most
    gap = abs(measured.value - bound)
    side = measured.high - measured.value if measured.value < bound else measured.value - measured.low
    if not 0 < gap < math.inf or not side < math.inf:
        return "no number of questions decides at this point"
    times = max(1.0, (side / gap) ** 2)
    if claim.statistic == "slope":
        return f"an interval {math.sqrt(times):.1f} times narrower would decide"
    units = measured.units or measured.n
    heads = f" in {_round_up(units * times)} heads" if units < measured.n else ""
    return f"about {_round_up(measured.n * times)} questions{heads} would decide"


def _round_up(count: float) -> str:
    """A whole number with two digits that count, upwards."""
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return f"{math.ceil(count / unit) * unit:,}"


def find(evidence: Evidence, reference: Reference, families: Sequence[str] | None = None) -> list[Finding]:
    """A finding for each claim that a comparison decides (of some families: none named, all), in the ledger's order.

    Those of one family stand on intervals adjusted for their number (:func:`reports.multiplicity.adjusted_level`).
    """
    chosen = reference.ledger.families if families is None else families
    asked = {name: claim for name, claim in reference.claims.items() if claim.family in chosen}
    taken = {name: _measurement(evidence, claim, reference.least) for name, claim in asked.items()}
    levels = {}
    for family in chosen:
        members = [it for it in taken.values() if it.claim.family == family and it.at(LEVEL)]
        levels[family] = adjusted_level([it.decides for it in members])
    return [it.finding(name, levels[it.claim.family]) for name, it in taken.items()]


@dataclass(frozen=True)
class _Measurement:
    """A claim with its interval at any level, and all that a finding says beside it."""

    claim: Claim
    exact: bool
    least: Least
    at: Callable[[float], Interval | None]
    where: str = ""
    remark: str = ""
    elsewhere: bool = False
    sign_test: float | None = None
    trainings: str = ""

    def decides(self, level: float) -> bool:
        """Whether the interval of a level meets or misses the bound."""
        return verdict(self.claim, self.at(level), self.exact, self.least) not in (INCONCLUSIVE, NOT_MEASURED)

    def finding(self, name: str, level: float) -> Finding:
        """What the interval of a level says."""
        claim, measured = self.claim, self.at(level)
        word = verdict(claim, measured, self.exact, self.least)
        short = measured and "; ".join(filter(None, (lacking(claim, measured, self.least), needed(claim, measured))))
        needs = short if word == INCONCLUSIVE else ""
        beside = self.where, word, self.remark, self.elsewhere, needs, self.sign_test, self.trainings
        return Finding(name, claim, measured, *beside, level=level if measured else None)


def _measurement(evidence: Evidence, claim: Claim, least: Least) -> _Measurement:
    measure = claim.measure(evidence.experiment.name)
    if evidence.experiment.profile.rehearsal:
        return _Measurement(claim, False, least, lambda level: None, remark="a rehearsal, whose numbers mean nothing")
    if measure is None:
        profiles = ", ".join([*claim.exact.profiles, *claim.miniature.profiles])
        remark = f"for the profiles {profiles}"
        return _Measurement(claim, False, least, lambda level: None, remark=remark, elsewhere=True)
    exact = measure is claim.exact
    if claim.statistic == "slope":
        return _slope(evidence, claim, measure.metric, exact, least)
    tasks = evidence.tasks_of_role(measure.role) if measure.role else measure.tasks
    comparison = _Comparison(evidence, claim, tasks, measure.metric)
    contexts = comparison.contexts()
    at = partial(comparison.interval, *contexts)
    if at(LEVEL) is None:
        return _Measurement(claim, exact, least, at, remark=comparison.remark(*contexts))
    sign_test = mcnemar(comparison.pairs(*contexts).tables) if claim.statistic != "loss" else None
    spread = trainings.spread(evidence, claim, tasks, contexts, measure.metric)
    where = _where(claim, *contexts)
    return _Measurement(claim, exact, least, at, where, sign_test=sign_test, trainings=spread)


def _slope(evidence: Evidence, claim: Claim, metric: str, exact: bool, least: Least) -> _Measurement:
    """How a latency grows."""
    system = claim.first.system

    def grown(level: float) -> tuple[Interval, str, str] | None:
        return costs.slope(evidence, system, metric, level) if system in evidence.latency else None

    def at(level: float) -> Interval | None:
        return found[0] if (found := grown(level)) else None

    if not (found := grown(LEVEL)):
        return _Measurement(claim, exact, least, at, remark="fewer than three contexts measured")
    return _Measurement(claim, exact, least, at, where=f"{found[1]} to {found[2]}")


@dataclass(frozen=True)
class _Comparison:
    """The two sides of a claim, at the tasks and by the metric that measure it."""

    evidence: Evidence
    claim: Claim
    tasks: list[str]
    metric: str

    def contexts(self) -> tuple[str, str]:
        """The contexts of both sides, with ``smallest`` and ``largest`` resolved to what both sides have."""
        contexts = self.claim.first.context, self.claim.second.context
        if not set(contexts) <= {"smallest", "largest"}:
            return contexts
        shared = [context for context in self.evidence.contexts if self.pairs(context, context)]
        ends = {"smallest": shared[0], "largest": shared[-1]} if shared else {}
        return ends.get(contexts[0], contexts[0]), ends.get(contexts[1], contexts[1])

    def pairs(self, first: str, second: str) -> Paired | None:
        """Values of the same questions on both sides, at a context each; None where a side has no data."""
        sides = (self.claim.first.system, first), (self.claim.second.system, second)
        return self.evidence.pairs(self.tasks, *sides, self.metric)

    def interval(self, first: str, second: str, level: float = LEVEL) -> Interval | None:
        """The claim's statistic in the claim's unit; None where a side has no data."""
        if (pairs := self.pairs(first, second)) is None:
            return None
        tables = [table / POINTS.get(self.metric, 1.0) for table in pairs.tables]
        return compare(self.claim.statistic, tables, pairs.heads, level)

    def remark(self, first: str, second: str) -> str:
        """Why there is no number, and for a claim over memory sizes the range that was measured instead."""
        evidence, claim = self.evidence, self.claim
        profile, tokens = evidence.experiment.profile, evidence.experiment.contexts
        if claim.first.system == claim.second.system:
            larger = [context for context in profile.contexts if tokens[context] > tokens.get(second, 0)]
            for context in sorted(larger, key=tokens.__getitem__, reverse=True):
                if found := self.interval(context, second):
                    return f"measured {second} to {context}: {show(found, claim.unit)}"
        for system, context in ((claim.first.system, first), (claim.second.system, second)):
            if system not in profile.systems:
                return f"{system} is not in this profile"
            if context not in (*profile.contexts, "smallest", "largest"):
                return f"{context} is not in this profile"
            if context in profile.contexts:
                statuses = {evidence.status(CellKey(system, task, context)) for task in self.tasks} - {"ok"}
                if statuses:
                    return f"{evidence.title(system)} at {context}: {words(', '.join(sorted(statuses)))}"
        return "no cell has run yet"


def _where(claim: Claim, first: str, second: str) -> str:
    if claim.first.system == claim.second.system:
        return f"{second} to {first}"
    return f"at {first}" if first == second else f"at {first} against {second}"


def show(interval: Interval, unit: str) -> str:
    """An interval as text: the point, then both ends in brackets; what is no number is said in words."""
    if math.isnan(interval.value):
        return "no ratio: both sides are 0"
    digits = {" x": 2, "": 3}.get(unit, 1)
    ends = (interval.value, interval.low, interval.high)
    value, low, high = (f"{end:.{digits}f}" if math.isfinite(end) else infinite(end) for end in ends)
    return f"{value}{unit if math.isfinite(interval.value) else ''} [{low}, {high}]"


def notes(findings: Sequence[Finding]) -> list[str]:
    """Lines below the verdicts: what would decide the open ones, and how trainings differ."""
    lines = [f"{finding.claim.title}: {finding.needed}" for finding in findings if finding.needed]
    trained = {finding.claim.title: finding.trainings for finding in findings if finding.trainings}
    if set(trained.values()) == {NOT_MEASURED}:
        return [*lines, "Intervals speak of one training of each model; spread between trainings: not measured"]
    return [*lines, *(f"{title}, between trainings: {said}" for title, said in trained.items())]


def table(findings: Iterable[Finding]) -> Table:
    """Each published claim beside what was measured, and its verdict."""
    columns = [
        *plain(claim="", title="Claim", source="Source"),
        Column("published", "Published", "g"),
        IntervalColumn("measured", "Measured", figure),
        *plain(unit="Unit", n="n", where="Where, or why not", criterion="Holds if the interval is", bound_source=""),
        Column("verdict", "Verdict", tone=TONES.__getitem__),
        Column("needed", "What would decide"),
        Column("mcnemar_p", "Exact McNemar p", ".2g"),
        *plain(method="Interval from", trainings="Between trainings", level="Level"),
    ]
    rows = []
    for finding in findings:
        claim, found = finding.claim, finding.measured
        measured = claim.published, found, claim.unit.strip(), found and found.n
        judged = finding.where or finding.remark, claim.criterion, claim.bound_source, finding.verdict
        beside = finding.needed, finding.sign_test, found.method if found else "", finding.trainings
        rows.append((finding.name, claim.title, claim.source, *measured, *judged, *beside, percent(finding.level)))
    return Table("claims", "Published claims", columns, rows)


def percent(level: float | None) -> str:
    """A level of confidence as text."""
    return f"{100 * level:.4g} %" if level else ""


def main() -> None:
    """Print the findings of one profile."""
    arguments = experiment_parser(__doc__).parse_args()
    evidence = Evidence.named(arguments)
    for finding in find(evidence, read_reference(systems=evidence.experiment.profile.systems)):
        claim = finding.claim
        text = show(finding.measured, claim.unit) + f", {finding.where}" if finding.measured else finding.remark
        print(f"{claim.title}: {finding.verdict}\n    published {claim.published:g}{claim.unit}; {text}")
        if finding.measured:
            tested = "" if finding.sign_test is None else f"exact McNemar p = {finding.sign_test:.2g}"
            level = f"{percent(finding.level)} interval"
            beside = (level, finding.measured.method, tested, finding.trainings, finding.needed)
            print(f"    {'; '.join(filter(None, beside))}")


if __name__ == "__main__":
    run_command(main)
