"""The few numbers at the top of the report, and the one-screen text that the command line prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports import cells
from reports.claims import NO_TASKS, Finding, show
from reports.evidence import NEEDLE_MEAN, NOT_MEASURED, Evidence
from reports.expected import MET, MISSED, OPEN, Outcome
from reports.statistics import STATISTICS, loss

HEADLINED = ("scaling", "ruler", "multihop")  # kinds of tasks with a tile of their own


@dataclass(frozen=True)
class Tile:
    """One headline number: what it is, the number, and its interval or context."""

    label: str
    value: str
    detail: str


def tiles(evidence: Evidence, reference: dict[str, Any]) -> list[Tile]:
    """The headline numbers in the order of the report; a number that is missing says so."""
    ours, profile = reference["roles"]["ours"], evidence.experiment.profile
    found = []
    for task in evidence.tasks_of_kind("scaling")[:1]:
        found.append(_over_contexts(evidence, ours, task, "Scaling task"))
    if evidence.needle_tasks:
        found.append(_over_contexts(evidence, ours, NEEDLE_MEAN, "Needles, mean of eight"))
    for task in evidence.tasks_of_kind("scaling")[:1]:
        found.append(_worst_recall(evidence, ours, task))
    for task in evidence.tasks_of_kind("multihop")[:1]:
        found.append(_interleave(evidence, reference, task))
    statuses = [evidence.status(cell) for cell in evidence.cells()]
    ok, open_cells = statuses.count("ok"), statuses.count(NOT_MEASURED)
    detail = f"{len(statuses) - ok - open_cells} failed as expected, {open_cells} not measured"
    found.append(Tile(f"Cells, {len(profile.systems)} systems", f"{ok} of {len(statuses)} ok", detail))
    return found


def _over_contexts(evidence: Evidence, system: str, task: str, label: str) -> Tile:
    points = [
        row
        for row in (evidence.point(system, task, context) for context in evidence.experiment.profile.contexts)
        if row
    ]
    if not points:
        return Tile(f"MSA, {label.lower()}", "–", NOT_MEASURED)
    first, last = points[0], points[-1]
    if first is last:
        return Tile(
            f"MSA, {label.lower()} at {first['context']}",
            f"{first['value']:.3f}",
            f"[{first['low']:.3f}, {first['high']:.3f}]",
        )
    pairs = evidence.pairs(evidence.members(task), (system, last["context"]), (system, first["context"]), "accuracy")
    lost = f"; loss {show(loss(pairs).scaled(100), ' %')}" if pairs and first["value"] else ""
    return Tile(
        f"MSA, {label.lower()}, {first['context']} → {last['context']}",
        f"{first['value']:.3f} → {last['value']:.3f}",
        f"[{first['low']:.3f}, {first['high']:.3f}] → [{last['low']:.3f}, {last['high']:.3f}]{lost}",
    )


def _worst_recall(evidence: Evidence, system: str, task: str) -> Tile:
    first_round = [metric for metric in evidence.recalls(system, task) if metric.count("/") == 1]
    contexts = evidence.experiment.profile.contexts
    rows = [
        row for metric in first_round for context in contexts if (row := evidence.point(system, task, context, metric))
    ]
    if not rows:
        return Tile("MSA, routing recall@16", "–", NOT_MEASURED)
    largest = max(row["context_tokens"] for row in rows)
    worst = min((row for row in rows if row["context_tokens"] == largest), key=lambda row: row["value"])
    detail = f"[{worst['low']:.3f}, {worst['high']:.3f}], the lower of its layers ({worst['metric'].removeprefix('recall@16/')})"
    return Tile(f"MSA, routing recall@16 at {worst['context']}", f"{worst['value']:.3f}", detail)


def _interleave(evidence: Evidence, reference: dict[str, Any], task: str) -> Tile:
    roles = reference["roles"]
    for context in reversed(evidence.experiment.profile.contexts):
        pairs = evidence.pairs([task], (roles["ours"], context), (roles["without_interleave"], context), "accuracy")
        if pairs:
            found = {name: STATISTICS[name](pairs) for name in ("ratio", "difference")}
            detail = f"[{found['ratio'].low:.2f}, {found['ratio'].high:.2f}] times; difference {show(found['difference'].scaled(100), ' points')}"
            return Tile(f"Two-hop, with / without interleave at {context}", f"{found['ratio'].value:.2f} x", detail)
    return Tile("Two-hop, with / without interleave", "–", NOT_MEASURED)


def scores(evidence: Evidence) -> list[str]:
    """A line for each task and system at its largest context: its metric with interval, and what of the gold it found."""
    lines, contexts = [], evidence.experiment.profile.contexts
    for task in evidence.experiment.profile.tasks:
        spec = evidence.experiment.tasks[task]
        for system in evidence.experiment.profile.systems:
            row = next((row for context in reversed(contexts) if (row := evidence.point(system, task, context))), None)
            if row is None:
                continue
            where = f" at {row['context']}" if len(contexts) > 1 else ""
            found = [evidence.point(system, task, row["context"], metric) for metric in evidence.recalls(system, task)]
            recall = f"; {found[0]['metric']} {found[0]['value']:.2f}" if found and found[0] else ""
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
            lines.append(f"  {spec.title + where:<50} {system:<12} {spec.metric} {row['value']:.3f} {interval}, n = {row['n']}{recall}")
    return lines


def text(
    evidence: Evidence, reference: dict[str, Any], findings: list[Finding], outcomes: list[Outcome], page: Path
) -> str:
    """One screen: headline numbers, verdicts, expectations missed, failed cells, and where the report is."""
    lines = [evidence.experiment.profile.title, ""]
    for tile in tiles(evidence, reference):
        lines.append(f"  {tile.label:<52} {tile.value}")
        lines.append(f"  {'':<52} {tile.detail}")
    if not any(evidence.tasks_of_kind(kind) for kind in HEADLINED):
        lines += ["", *scores(evidence)]
    absent = [finding for finding in findings if finding.remark == NO_TASKS]
    lines += ["", "Published claims (verdicts from 95 % intervals)"]
    if absent:
        lines.append(f"  {len(absent)} of {len(findings)} need tasks that this profile has not")
    for finding in findings:
        if finding in absent:
            continue
        measured = (
            f"{show(finding.measured, finding.claim.unit)} {finding.where}" if finding.measured else finding.remark
        )
        lines.append(f"  {finding.claim.title:<58} {finding.verdict}")
        lines.append(f"    published {finding.claim.published:g}{finding.claim.unit}; {measured}")
    if outcomes:
        counts = {word: sum(outcome.verdict == word for outcome in outcomes) for word in (MET, MISSED, OPEN)}
        lines += ["", "Expected of this profile: " + ", ".join(f"{count} {word}" for word, count in counts.items())]
        for outcome in outcomes:
            if outcome.verdict == MISSED:
                lines.append(
                    f"  missed: {outcome.expectation.title}: {show(outcome.measured, outcome.expectation.unit)}, {outcome.expectation.target}"
                )
    failed = cells.failed(evidence)
    if failed:
        lines += ["", "Cells without a score"]
        lines += [f"  {count:>4} {status.replace('_', ' ')}: {', '.join(systems)}" for status, count, systems in failed]
    prompts = cells.prompts(evidence)
    if prompts:
        lines += ["", f"What models read: {'; '.join(prompts)}"]
    return "\n".join([*lines, "", f"Report: {page}"])
