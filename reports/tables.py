"""The report's tables: display cells for the page and a raw data frame for the CSV beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from reports import statistics
from reports.claims import UNITS, Finding, show
from reports.diagnosis import CAUSES, diagnose
from reports.evidence import NEEDLE_MEAN, NOT_MEASURED, Evidence
from reports.statistics import LEVEL, difference, ratio

TONES = {
    "reproduced": "good",
    "holds in miniature": "good",
    "not reproduced": "bad",
    "does not hold in miniature": "bad",
    "inconclusive": "unsure",
    NOT_MEASURED: "none",
}
SHORT = {  # statuses where room is scarce
    "unsupported_context": "too long",
    "out_of_memory": "memory",
    "timeout": "timeout",
    "unavailable_data": "no data",
    NOT_MEASURED: "–",
}


class Field(NamedTuple):
    """One table field: text, a smaller second text, a tone (CSS class) and a tooltip."""

    text: str
    small: str = ""
    tone: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its file name; ``rows`` are shown, ``frame`` is written as CSV with full precision."""

    name: str
    title: str
    header: list[str]
    rows: list[list[Field]]
    frame: pd.DataFrame


def bytes_text(value: float) -> str:
    """Bytes in the largest decimal unit that leaves a number above one."""
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {name}"
    return f"{value:.0f} B"


def seconds_text(value: float) -> str:
    """Seconds as milliseconds, seconds or minutes."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"


def value_field(evidence: Evidence, system: str, task: str, context: str, metric: str = "accuracy") -> Field:
    """A summary value with its interval, or the status that stands in its place."""
    row = evidence.summary.get((system, task, context, metric))
    if row is None or row["value"] is None:
        status = row["status"] if row else NOT_MEASURED
        return Field(SHORT.get(status, status), tone="none", tip=status.replace("_", " "))
    failed = f" ✗{row['failures']}" if row["failures"] else ""
    interval = "" if row["low"] is None else f"{row['low']:.2f}–{row['high']:.2f}"
    return Field(
        f"{row['value']:.3f}", interval + failed, tip=f"n = {row['n']}; {row['failures']} failed; {row['status']}"
    )


def claims(findings: Iterable[Finding]) -> Table:
    """Each published claim beside what was measured, and its verdict."""
    findings = list(findings)
    rows, raw = [], []
    for finding in findings:
        claim, measured = finding.claim, finding.measured
        text = show(measured, claim.unit) if measured else "–"
        rows.append(
            [
                Field(claim.title, claim.source),
                Field(f"{claim.published:g}{claim.unit}"),
                Field(
                    text,
                    finding.where or finding.remark,
                    tip=f"n = {measured.n}, {measured.method}" if measured else "",
                ),
                Field(claim.criterion, claim.bound_source),
                Field(finding.verdict, tone=TONES[finding.verdict]),
            ]
        )
        ends = (measured.value, measured.low, measured.high, measured.n) if measured else (None,) * 4
        raw.append(
            (
                finding.name,
                claim.title,
                claim.source,
                claim.published,
                UNITS[claim.statistic].strip(),
                *ends,
                finding.where,
                claim.criterion,
                finding.verdict,
                finding.remark,
            )
        )
    columns = [
        "claim",
        "title",
        "source",
        "published",
        "unit",
        "measured",
        "low",
        "high",
        "n",
        "where",
        "criterion",
        "verdict",
        "remark",
    ]
    header = ["Claim", "Published", f"Measured [{LEVEL:.0%} interval]", "Holds if the whole interval is", "Verdict"]
    return Table("claims", "Published claims", header, rows, pd.DataFrame(raw, columns=columns))


def scores(evidence: Evidence, context: str) -> Table:
    """Accuracy of every system at every task, at one context."""
    profile = evidence.experiment.profile
    tasks = [*([NEEDLE_MEAN] if evidence.needle_tasks else []), *profile.tasks]
    # the mean, then what has no mean, then the eight one by one
    tasks.sort(key=lambda task: (task != NEEDLE_MEAN, task in evidence.needle_tasks))
    rows = [
        [Field(evidence.title(system)), *(value_field(evidence, system, task, context) for task in tasks)]
        for system in profile.systems
    ]
    frame = _summary_frame(evidence, lambda row: row["context"] == context and row["metric"] == "accuracy")
    header = ["System", *(evidence.title(task) for task in tasks)]
    return Table(f"scores_{context}", f"Accuracy at {context} tokens", header, rows, frame)


def all_scores(evidence: Evidence) -> Table:
    """Accuracy of every cell: a row a task and system, a column a context."""
    profile = evidence.experiment.profile
    tasks = [*([NEEDLE_MEAN] if evidence.needle_tasks else []), *profile.tasks]
    rows = [
        [
            Field(evidence.title(task)),
            Field(evidence.title(system)),
            *(value_field(evidence, system, task, context) for context in profile.contexts),
        ]
        for task in tasks
        for system in profile.systems
    ]
    frame = _summary_frame(evidence, lambda row: row["metric"] == "accuracy")
    return Table("scores", "Accuracy, all cells", ["Task", "System", *profile.contexts], rows, frame)


def _summary_frame(evidence: Evidence, keep: Any) -> pd.DataFrame:
    return pd.DataFrame([row for row in evidence.summary.values() if keep(row)])


def comparisons(evidence: Evidence, ours: str) -> Table:
    """Paired differences of MSA to every other system, at the smallest and the largest context."""
    profile = evidence.experiment.profile
    tasks = [
        *([NEEDLE_MEAN] if evidence.needle_tasks else []),
        *(task for task in profile.tasks if task not in evidence.needle_tasks),
    ]
    ends = list(dict.fromkeys((profile.contexts[0], profile.contexts[-1])))
    rows, raw = [], []
    for system in profile.systems:
        if system == ours:
            continue
        row = [Field(evidence.title(system))]
        for task in tasks:
            for context in ends:
                pairs = evidence.pairs(evidence.members(task), (ours, context), (system, context), "accuracy")
                if pairs is None:
                    row.append(Field("–", tone="none"))
                    continue
                found = difference(pairs)
                tone = "good" if found.low > 0 else "bad" if found.high < 0 else ""
                row.append(
                    Field(
                        f"{found.value:+.3f}",
                        f"{found.low:+.2f} to {found.high:+.2f}",
                        tone,
                        f"{found.n} shared questions, {found.method}",
                    )
                )
                raw.append((system, task, context, found.value, found.low, found.high, found.n, found.method))
        rows.append(row)
    header = ["MSA minus", *(f"{evidence.title(task)}, {context}" for task in tasks for context in ends)]
    frame = pd.DataFrame(raw, columns=["system", "task", "context", "difference", "low", "high", "n", "method"])
    return Table("comparisons", "MSA against each system, same questions", header, rows, frame)


def interleave(evidence: Evidence, roles: dict[str, str]) -> Table:
    """Two-hop accuracy with and without Memory Interleave, their paired difference and ratio, at every context."""
    rows, raw = [], []
    for task in evidence.tasks_of_kind("multihop"):
        for context in evidence.experiment.profile.contexts:
            sides = [(roles[role], context) for role in ("ours", "without_interleave")]
            row = [Field(context), *(value_field(evidence, system, task, context) for system, _ in sides)]
            pairs = evidence.pairs([task], *sides, "accuracy")
            for name, compare, digits in (("difference", difference, "+.3f"), ("ratio", ratio, ".2f")):
                if pairs is None:
                    row.append(Field("–", tone="none"))
                    continue
                found = compare(pairs)
                neutral = 0 if name == "difference" else 1
                row.append(
                    Field(
                        f"{found.value:{digits}}",
                        f"{found.low:{digits}} to {found.high:{digits}}",
                        "good" if found.low > neutral else "bad" if found.high < neutral else "",
                        found.method,
                    )
                )
                raw.append((task, context, name, found.value, found.low, found.high, found.n, found.method))
            rows.append(row)
    frame = pd.DataFrame(raw, columns=["task", "context", "statistic", "value", "low", "high", "n", "method"])
    header = ["Memory", "With interleave", "Without", "Paired difference", "Ratio"]
    return Table("interleave", "Memory Interleave on two-hop questions", header, rows, frame)


def free_ids(evidence: Evidence, roles: dict[str, str]) -> Table:
    """Document ids decoded freely beside ids constrained to the routed candidates: accuracy and citation recall."""
    profile = evidence.experiment.profile
    tasks = [
        *([NEEDLE_MEAN] if evidence.needle_tasks else []),
        *(task for task in profile.tasks if task not in evidence.needle_tasks),
    ]
    rows, keys = [], set()
    for task in tasks:
        for context in dict.fromkeys((profile.contexts[0], profile.contexts[-1])):
            row = [Field(evidence.title(task)), Field(context)]
            for metric in ("accuracy", "citation_recall") if task != NEEDLE_MEAN else ("accuracy",):
                for role in ("ours", "free_ids"):
                    row.append(value_field(evidence, roles[role], task, context, metric))
                    keys.add((roles[role], task, context, metric))
            rows.append(row + [Field("")] * (6 - len(row)))
    frame = _summary_frame(evidence, lambda row: (row["system"], row["task"], row["context"], row["metric"]) in keys)
    header = [
        "Task",
        "Memory",
        "Accuracy, constrained",
        "Accuracy, free",
        "Citation recall, constrained",
        "Citation recall, free",
    ]
    return Table("free_ids", "Constrained and free document ids", header, rows, frame)


def recall(evidence: Evidence, ours: str) -> Table:
    """Recall@16 of each routed layer at every task and context."""
    profile = evidence.experiment.profile
    rows, keys = [], set()
    for task in profile.tasks:
        for stage in evidence.recalls(ours, task):
            fields = [value_field(evidence, ours, task, context, stage) for context in profile.contexts]
            rows.append([Field(evidence.title(task)), Field(stage.removeprefix("recall@16/")), *fields])
            keys.add((task, stage))
    frame = _summary_frame(evidence, lambda row: row["system"] == ours and (row["task"], row["metric"]) in keys)
    return Table("recall", "Routing recall@16 of MSA", ["Task", "Round and layer", *profile.contexts], rows, frame)


def failures(evidence: Evidence, ours: str) -> Table:
    """What MSA's wrong answers failed at, task by task; the page shows the ends, the CSV every context."""
    profile = evidence.experiment.profile
    ends = {profile.contexts[0], profile.contexts[-1]}
    rows, raw = [], []
    for task in profile.tasks:
        for context in profile.contexts:
            found = diagnose(evidence, ours, task, context)
            if found is None:
                continue
            raw.append(
                (task, context, found.n, found.right, *(found.causes[cause] for cause in CAUSES), found.statuses)
            )
            if context in ends:
                fields = [
                    Field(str(count or "·"), tone="bad" if count and name == found.main_cause else "")
                    for name, count in found.causes.items()
                ]
                statuses = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in found.statuses.items())
                rows.append(
                    [
                        Field(evidence.title(task)),
                        Field(context),
                        Field(str(found.n)),
                        Field(str(found.n - found.right or "·")),
                        *fields,
                        Field(statuses),
                    ]
                )
    frame = pd.DataFrame(raw, columns=["task", "context", "answers", "right", *CAUSES, "statuses"])
    header = [
        "Task",
        "Memory",
        "Answers",
        "Not fully right",
        "Retrieval failed",
        "Citation failed",
        "Reading failed",
        "Malformed",
        "Statuses",
    ]
    return Table("failures", "Which tasks fail, and at which step", header, rows, frame)


def cost(evidence: Evidence) -> Table:
    """Latency, memory and index size at the smallest and largest measured context, with fitted slopes."""
    rows, raw = [], []
    for system, found in evidence.latency.items():
        if system not in evidence.experiment.profile.systems:
            continue
        row = [Field(evidence.title(system))]
        for metric, text in (
            ("first_token_s/median", seconds_text),
            ("total_s/median", seconds_text),
            ("total_s/p90", seconds_text),
            ("peak_host_bytes", bytes_text),
            ("index_bytes", bytes_text),
        ):
            points = [
                evidence.point(system, found["task"], context, f"latency/{metric}")
                for context in evidence.experiment.profile.contexts
            ]
            known = [point for point in points if point]
            positive = [point for point in known if point["value"] > 0]
            if not known:
                row.append(Field("–", tone="none"))
                continue
            ends = f"{text(known[0]['value'])} → {text(known[-1]['value'])}"
            slope = ""
            if len(positive) > 2:
                fit = statistics.slope_interval(
                    [point["context_tokens"] for point in positive], [point["value"] for point in positive]
                )
                slope = f"n^{fit.value:.2f} [{fit.low:.2f}, {fit.high:.2f}]"
                raw.append((system, metric, fit.value, fit.low, fit.high, fit.n))
            row.append(Field(ends, slope, tip=f"{known[0]['context']} to {known[-1]['context']}"))
        rows.append(row)
    frame = pd.DataFrame(raw, columns=["system", "metric", "slope", "low", "high", "contexts"])
    header = ["System", "First token, median", "Answer, median", "Answer, 90th percentile", "Peak host memory", "Index"]
    return Table("cost", "Cost from the smallest to the largest memory", header, rows, frame)


def stages(evidence: Evidence) -> Table:
    """Where the time of an answer goes, at the largest context with a measurement."""
    rows, raw = [], []
    for system, found in evidence.latency.items():
        measured = [
            context
            for context in evidence.experiment.profile.contexts
            if found["contexts"].get(context, {}).get("stage_s")
        ]
        if not measured or system not in evidence.experiment.profile.systems:
            continue
        spent = found["contexts"][measured[-1]]["stage_s"]
        total = sum(spent.values()) or 1.0
        split = ", ".join(
            f"{name} {seconds / total:.0%}" for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
        )
        rows.append(
            [Field(evidence.title(system)), Field(measured[-1]), Field(split), Field(seconds_text(sum(spent.values())))]
        )
        raw.extend((system, measured[-1], name, seconds) for name, seconds in spent.items())
    frame = pd.DataFrame(raw, columns=["system", "context", "stage", "median_s"])
    return Table(
        "stages",
        "Where the time of an answer goes",
        ["System", "Memory", "Share of the stages", "Sum of medians"],
        rows,
        frame,
    )


def time(evidence: Evidence) -> Table:
    """Each system's share of the time that all answers took, its index beside it, and what served models cost."""
    spent: dict[str, float] = {}
    served: dict[str, list[dict[str, Any]]] = {}
    for (system, _, _), runs in evidence.runs.items():
        spent[system] = spent.get(system, 0.0) + sum(run.get("wall_s") or 0.0 for run in runs)
        served.setdefault(system, []).extend(use for run in runs for use in (run.get("usage") or {}).values())
    total = sum(spent.values()) or 1.0
    rows, raw = [], []
    for system, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        build_s = evidence.build_s(system)
        requests, dollars = _served(served[system])
        rows.append(
            [
                Field(evidence.title(system)),
                Field(f"{seconds / total:.1%}"),
                Field(seconds_text(seconds)),
                Field("–", tone="none") if build_s is None else Field(seconds_text(build_s), tip="shared with systems of the same index"),
                Field(f"{requests:,}", "" if dollars is None else f"${dollars:.2f}") if requests else Field("–", tone="none"),
            ]
        )
        raw.append((system, seconds, seconds / total, build_s, requests, dollars))
    frame = pd.DataFrame(raw, columns=["system", "answering_s", "share", "index_s", "served_requests", "served_usd"])
    header = ["System", "Share of answering", "Answering", "Its indexes", "Served requests"]
    return Table("time", "Where the time of the races went", header, rows, frame)


def _served(usages: list[dict[str, Any]]) -> tuple[int, float | None]:
    """Requests to served models, and dollars; None where a price is unknown."""
    requests = sum(usage["requests"] for usage in usages)
    prices = [usage["cost_usd"] for usage in usages]
    return requests, None if None in prices or not prices else sum(prices)


def tuning(evidence: Evidence) -> Table:
    """What the searches on the tuning split found: the best setting, the entry's own, and how far they are apart."""
    rows, raw = [], []
    for system, record in evidence.tuning.items():
        tried = [row for row in record["rows"] if row["correct"] is not None]
        best = max(tried, key=lambda row: row["correct"], default=None)
        own = next((row for row in tried if row["params"] == record["entry"]), None)
        rows.append(
            [
                Field(evidence.title(system)),
                Field(", ".join(record["entry"])),
                _tried(best),
                _tried(own),
                Field(f"{record['questions']}", f"over {record['tokens']:,} tokens"),
            ]
        )
        raw.extend((system, str(row["params"]), row["correct"], row["recall"], row["seconds"], row["status"]) for row in record["rows"])
    frame = pd.DataFrame(raw, columns=["system", "params", "correct", "recall", "seconds", "status"])
    header = ["System", "Settings", "Best of the search", "As raced", "Questions"]
    return Table("tuning", "Tuning, on a split that is not raced on", header, rows, frame)


def _tried(row: dict[str, Any] | None) -> Field:
    if row is None:
        return Field("–", tone="none", tip="not among the values that were tried")
    return Field(f"{row['correct']:.3f}", ", ".join(f"{name} {value}" for name, value in row["params"].items()), tip=f"gold documents read {row['recall']:.3f}")
