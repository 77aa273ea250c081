"""The verdict on each published claim, from the interval of what was measured and never from the point.

``reproduced`` and ``not reproduced`` are kept for the paper's own backbone, tasks and metric; elsewhere a claim ``holds
in miniature`` or does not. Print them::

    python -m reports.claims --profile tiny
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError, run_command
from configs.load import build, read_yaml
from reports.evidence import NEEDLE_MEAN, NOT_MEASURED, Evidence
from reports.statistics import STATISTICS, Interval, slope_interval
from reports.summarise import POINTS

REFERENCE = Path(__file__).parent / "reference.yaml"
INCONCLUSIVE = "inconclusive"
NO_TASKS = "its tasks are not in this profile"  # a finding's remark
EXACT = ("reproduced", "not reproduced")
MINIATURE = ("holds in miniature", "does not hold in miniature")
UNITS = {"loss": " %", "gain": " %", "difference": " points", "ratio": " x", "slope": ""}


@dataclass(frozen=True)
class Side:
    """One mean of a claim: a system at a context, or at the ``smallest`` or ``largest`` that both sides have."""

    system: str
    context: str


@dataclass(frozen=True)
class Measure:
    """What a claim is measured on: tasks by name or all of a ``kind``, and the metric."""

    metric: str
    tasks: list[str] = field(default_factory=list)
    kind: str | None = None


@dataclass(frozen=True)
class Claim:
    """A published claim; reference.yaml says what the fields mean and which unit the bounds have."""

    title: str
    source: str
    published: float
    statistic: str
    first: Side
    second: Side
    exact: Measure
    miniature: Measure
    bound_source: str
    above: float | None = None
    at_most: float | None = None

    @property
    def unit(self) -> str:
        """Suffix of the claim's numbers."""
        return UNITS[self.statistic]

    @property
    def criterion(self) -> str:
        """What the whole interval must satisfy."""
        return f"above {self.above:g}{self.unit}" if self.at_most is None else f"at most {self.at_most:g}{self.unit}"


@dataclass(frozen=True)
class Finding:
    """A claim beside what was measured: the interval or None, the measured range in words, the verdict, and a remark."""

    name: str
    claim: Claim
    measured: Interval | None
    where: str
    verdict: str
    remark: str = ""


def read_reference(path: Path = REFERENCE, systems: Sequence[str] = ()) -> dict[str, Any]:
    """The published numbers, with ``claims`` as checked :class:`Claim` objects and ``roles`` as names of systems.

    Args:
        systems: of the profile; a role is played by the first of its systems that is among them, else by its first.

    Raises:
        UserError: an unknown key, or a claim without exactly one bound.
    """
    reference = read_yaml(path)
    roles = {role: next((name for name in names if name in systems), names[0]) for role, names in reference["roles"].items()}
    claims = {}
    for name, entry in reference["claims"].items():
        where = f"{path}: claims: {name}"
        parts = {"first": Side, "second": Side, "exact": Measure, "miniature": Measure}
        entry = {
            key: build(parts[key], value, f"{where}: {key}") if key in parts else value for key, value in entry.items()
        }
        claim = build(Claim, entry, where)
        if (claim.above is None) == (claim.at_most is None):
            raise UserError(f"{where}: needs one of the keys 'above' and 'at_most'")
        if claim.statistic not in UNITS:
            raise UserError(f"{where}: statistic: unknown name '{claim.statistic}' (known: {', '.join(UNITS)})")
        first, second = (replace(side, system=roles.get(side.system, side.system)) for side in (claim.first, claim.second))
        claims[name] = replace(claim, first=first, second=second)
    return {**reference, "roles": roles, "claims": claims}


def verdict(claim: Claim, measured: Interval | None, exact: bool) -> str:
    """The word for a claim.

    A bound is met or missed only by a whole interval. Exact claims must also be compatible with the published number:
    an effect that is real but wholly smaller than the published one is not reproduced.
    """
    if measured is None:
        return NOT_MEASURED
    yes, no = EXACT if exact else MINIATURE
    if claim.at_most is not None:
        held, missed = measured.high <= claim.at_most, measured.low > claim.at_most
    else:
        held, missed = measured.low > claim.above, measured.high <= claim.above
        missed = missed or (exact and measured.high < claim.published)
        held = held and not missed
    return yes if held else no if missed else INCONCLUSIVE


def find(evidence: Evidence, reference: dict[str, Any]) -> list[Finding]:
    """A finding for each claim, in the order of the reference."""
    return [_finding(evidence, reference, name, claim) for name, claim in reference["claims"].items()]


def _finding(evidence: Evidence, reference: dict[str, Any], name: str, claim: Claim) -> Finding:
    exact = evidence.experiment.name == reference["paper"]["profile"]
    measure = claim.exact if exact else claim.miniature
    if claim.statistic == "slope":
        measured, where = _slope(evidence, claim, measure)
        remark = "" if measured else "fewer than three contexts measured"
        return Finding(name, claim, measured, where, verdict(claim, measured, exact), remark)
    tasks = [member for task in _tasks(evidence, measure) for member in evidence.members(task)]
    contexts = _contexts(evidence, claim, tasks, measure.metric)
    measured = _compare(evidence, claim, tasks, contexts, measure.metric)
    if measured is not None:
        return Finding(name, claim, measured, _where(claim, contexts), verdict(claim, measured, exact))
    return Finding(name, claim, None, "", NOT_MEASURED, _remark(evidence, claim, tasks, contexts, measure.metric))


def _tasks(evidence: Evidence, measure: Measure) -> list[str]:
    if measure.kind is not None:
        return evidence.tasks_of_kind(measure.kind)
    known = [
        task
        for task in measure.tasks
        if task in evidence.experiment.profile.tasks or (task == NEEDLE_MEAN and evidence.needle_tasks)
    ]
    return known if known == measure.tasks else []


def _contexts(evidence: Evidence, claim: Claim, tasks: list[str], metric: str) -> tuple[str, str]:
    """The contexts of both sides, with ``smallest`` and ``largest`` resolved to what both sides have."""
    contexts = (claim.first.context, claim.second.context)
    if not set(contexts) <= {"smallest", "largest"}:
        return contexts
    shared = [
        context
        for context in evidence.experiment.profile.contexts
        if _pairs(evidence, claim, tasks, (context, context), metric)
    ]
    if not shared:
        return contexts
    ends = {"smallest": shared[0], "largest": shared[-1]}
    return ends[contexts[0]], ends[contexts[1]]


def _pairs(
    evidence: Evidence, claim: Claim, tasks: list[str], contexts: tuple[str, str], metric: str
) -> list[np.ndarray] | None:
    """Values of the same questions on the claim's two sides; None where a side has no data."""
    sides = (claim.first.system, contexts[0]), (claim.second.system, contexts[1])
    return evidence.pairs(tasks, *sides, metric) if tasks else None


def _compare(
    evidence: Evidence, claim: Claim, tasks: list[str], contexts: tuple[str, str], metric: str
) -> Interval | None:
    """The claim's statistic over the same questions, in the claim's unit; None where a side has no data."""
    pairs = _pairs(evidence, claim, tasks, contexts, metric)
    if pairs is None:
        return None
    found = STATISTICS[claim.statistic]([pair / POINTS.get(metric, 1.0) for pair in pairs])
    return found if claim.statistic == "ratio" else found.scaled(100)


def _slope(evidence: Evidence, claim: Claim, measure: Measure) -> tuple[Interval | None, str]:
    _, cost, which = measure.metric.split("/")
    entries = evidence.latency.get(claim.first.system, {"contexts": {}})["contexts"]
    points = {
        context: entries[context][cost][which]
        for context in evidence.experiment.profile.contexts
        if entries.get(context, {}).get("status") == "ok"
    }
    if len(points) < 3:
        return None, ""
    sizes = [evidence.experiment.contexts[context] for context in points]
    return slope_interval(sizes, list(points.values())), f"{next(iter(points))} to {list(points)[-1]}"


def _where(claim: Claim, contexts: tuple[str, str]) -> str:
    if claim.first.system == claim.second.system:
        return f"{contexts[1]} to {contexts[0]}"
    return f"at {contexts[0]}" if contexts[0] == contexts[1] else f"at {contexts[0]} against {contexts[1]}"


def _remark(evidence: Evidence, claim: Claim, tasks: list[str], contexts: tuple[str, str], metric: str) -> str:
    """Why there is no number, and for a claim over memory sizes the range that was measured instead."""
    if not tasks:
        return NO_TASKS
    profile = evidence.experiment.profile
    if claim.first.system == claim.second.system:
        tokens = evidence.experiment.contexts
        for context in sorted(profile.contexts, key=tokens.__getitem__, reverse=True):
            if tokens[context] <= tokens.get(contexts[1], 0):
                break
            found = _compare(evidence, claim, tasks, (context, contexts[1]), metric)
            if found is not None:
                return f"measured {contexts[1]} to {context}: {show(found, claim.unit)}"
    for side, context in zip((claim.first, claim.second), contexts, strict=True):
        if side.system not in profile.systems:
            return f"{side.system} is not in this profile"
        if context not in (*profile.contexts, "smallest", "largest"):
            return f"{context} is not in this profile"
        if context in profile.contexts:
            statuses = {evidence.status((side.system, task, context)) for task in tasks} - {"ok"}
            if statuses:
                return f"{evidence.experiment.systems[side.system].title} at {context}: {', '.join(sorted(statuses)).replace('_', ' ')}"
    return "no cell has run yet"


def show(interval: Interval, unit: str) -> str:
    """An interval as text: the point, then both ends in brackets; a ratio of 0 to 0 is undefined."""
    digits = {" x": 2, "": 3}.get(unit, 1)
    value, low, high = (
        f"{end:.{digits}f}".replace("inf", "∞") for end in (interval.value, interval.low, interval.high)
    )
    return (
        f"undefined (0 against 0) [{low}, {high}]" if math.isnan(interval.value) else f"{value}{unit} [{low}, {high}]"
    )


def main() -> None:
    """Print the findings of one profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--results", default="results", type=Path, help="the results directory (default: results)")
    parser.add_argument(
        "--configs", default="configs", type=Path, help="the configuration directory (default: configs)"
    )
    arguments = parser.parse_args()
    evidence = Evidence.read(arguments.profile, arguments.results, arguments.configs)
    for finding in find(evidence, read_reference(systems=evidence.experiment.profile.systems)):
        claim = finding.claim
        text = show(finding.measured, claim.unit) + f", {finding.where}" if finding.measured else finding.remark
        print(f"{claim.title}: {finding.verdict}\n    published {claim.published:g}{claim.unit}; {text}")


if __name__ == "__main__":
    run_command(main)
