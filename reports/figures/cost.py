"""Figures of cost: of an answer against memory size and by stage, of the evaluation by system, and of training."""

from __future__ import annotations

from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import sources
from reports.evidence import LATENCY, NOT_MEASURED, Evidence
from reports.figures import look
from reports.figures.look import Line
from reports.figures.quality import line
from reports.published.reference import Reference
from reports.rivals import in_order
from reports.tables.costs import positive
from reports.tables.table import seconds_text

COSTS = {  # of the summary: what it is called here, and the factor to that unit
    "total_s/median": ("seconds for an answer, median", 1.0),
    "peak_host_bytes": ("peak host memory, GB", 1e-9),
    "index_bytes": ("index on disk, GB", 1e-9),
}
LOSSES = {  # columns of a training log, by how their names begin
    "lm_loss": "language-model loss, nats a token",
    "aux_loss": "auxiliary (routing) loss",
    "recall@1": "recall@1 of the routers in training",
}
STEPS = {  # of an answer, and the stages that systems time; what is in none is a retriever's
    "route": ("route", "retrieve", "fuse", "rerank"),
    "cite": ("cite",),
    "fetch": ("fetch",),
    "prefill": ("read", "prefill"),
    "memory agent": ("memory",),
    "decode": ("decode",),
}


def cost(evidence: Evidence, reference: Reference) -> Figure | None:
    """Latency, memory and index against memory size on logarithmic axes."""
    figure, axes = look.new(len(COSTS), size=(4.5, 3.5))
    drawn = [_cost_panel(ax, evidence, reference, metric) for ax, metric in zip(axes, COSTS, strict=True)]
    look.legend(figure)
    return figure if any(drawn) else None


def _cost_panel(axes: Axes, evidence: Evidence, reference: Reference, metric: str) -> list[Line]:
    title, factor = COSTS[metric]
    look.context_axis(axes, evidence.tokens, room=0.2)
    axes.set(title=title)
    lines = []
    for system, style in look.looks(evidence, reference.played_by["ours"]).items():
        record = evidence.latency.get(system)
        rows = positive(evidence.points(system, record.task, f"{LATENCY}/{metric}")) if record else []
        if rows:
            found = line(evidence, rows, evidence.title(system), style)
            found.points[:, 1:] *= factor
            lines.append(found)
    if lines:
        look.draw(axes, lines, bands=False)
        look.cost_axis(axes)
    else:
        _not_measured(axes)
    return lines


def _not_measured(axes: Axes) -> None:
    axes.text(0.5, 0.5, NOT_MEASURED, transform=axes.transAxes, ha="center", color=look.MUTED)


def latency_split(evidence: Evidence, reference: Reference) -> Figure | None:
    """Where the time of an answer goes by system, at the largest context of each, and once a memory: encoding it."""
    spent, encoded = {}, {}
    for system in in_order(evidence, reference.played_by["ours"]):
        record = evidence.latency.get(system)
        if record is None:
            continue
        measured = [name for name in evidence.contexts if (at := record.contexts.get(name)) and at.stage_s]
        if measured:
            at, name = record.contexts[measured[-1]], f"{evidence.title(system)}, {measured[-1]}"
            link = sources.latency(evidence, system)
            spent[name] = (by_step(at.stage_s), link)
            encoded[name] = ({"encode": at.ingest_s} if at.ingest_s else {}, link)
    if not spent:
        return None
    panels = {"An answer": spent} | (
        {"Encoding, once a memory": encoded} if any(it for it, _ in encoded.values()) else {}
    )
    figure, axes = look.new(len(panels), size=(5.4, 0.95 + 0.27 * max(len(spent), 4)))
    colours = dict(zip((*STEPS, "encode"), (look.OURS, *(colour for colour, _ in look.OTHERS)), strict=False))
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        longest = max(sum(steps.values()) for steps, _ in rows.values())
        for row, (name, (steps, link)) in enumerate(rows.items()):
            left = 0.0
            for step, seconds in steps.items():
                says = sources.first(link, f"{name}, {step}: {seconds_text(seconds)}")
                ax.barh(row, seconds, 0.62, left, color=colours[step]).patches[0].set_url(says or None)
                left += seconds
            text = seconds_text(left) if steps else NOT_MEASURED
            ax.text(left + longest * 0.015, row, text, va="center", fontsize=8.5)
        for step in STEPS:
            if title == "An answer" and any(step in steps for steps, _ in rows.values()):
                ax.bar(0, 0, color=colours[step], label=step)
        ax.set_yticks(range(len(rows)), list(rows), color=look.INK, fontsize=8.5)
        ax.set(title=title, xlabel="seconds, median of a stage", xlim=(0, longest * 1.2), ylim=(len(rows) - 0.4, -0.6))
        ax.grid(False, axis="y")
    look.legend(figure)
    return figure


def by_step(stage_s: dict[str, float]) -> dict[str, float]:
    """Seconds of the stages of an answer by step, in the order of :data:`STEPS`."""
    found = dict.fromkeys(STEPS, 0.0)
    for stage, seconds in stage_s.items():
        found[next((step for step, stages in STEPS.items() if stage in stages), "route")] += seconds
    return {step: seconds for step, seconds in found.items() if seconds}


def time_share(evidence: Evidence, reference: Reference) -> Figure | None:
    """Minutes that each system's cells took, with its share of all."""
    minutes = dict.fromkeys(in_order(evidence, reference.played_by["ours"]), 0.0)
    for cell, runs in evidence.runs.items():
        minutes[cell.system] += sum(run.wall_s or 0.0 for run in runs) / 60
    longest, total = max(minutes.values()), sum(minutes.values())
    if not total:
        return None
    figure, (axes,) = look.new(size=(5.4, 0.8 + 0.27 * len(minutes)))
    styles = look.looks(evidence, reference.played_by["ours"])
    for row, (system, spent) in enumerate(minutes.items()):
        axes.barh(row, spent, height=0.62, color=styles[system].colour)
        text = f"{seconds_text(60 * spent)}, {spent / total:.0%}"
        axes.text(spent + longest * 0.01, row, text, va="center", fontsize=8.5)
    axes.set_yticks(range(len(minutes)), [evidence.title(system) for system in minutes], color=look.INK, fontsize=8.5)
    axes.set(xlabel="minutes over all cells", xlim=(0, longest * 1.35))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    return figure


def training(evidence: Evidence, reference: Reference) -> Figure | None:
    """Language-model loss, auxiliary loss and router recall of each trained model against training time."""
    logs = {name: log for name, log in evidence.training.items() if len(log)}
    if not logs:
        return None
    colours = [look.INK, look.OTHERS[0][0], look.OURS, *(colour for colour, _ in look.OTHERS[1:])]
    figure, axes = look.new(len(LOSSES), size=(4.5, 3.4))
    for ax, (prefix, title) in zip(axes, LOSSES.items(), strict=True):
        ax.set(xlabel="minutes of training", title=title)
        drawn = [
            _curves(ax, log, name, prefix, colour)
            for (name, log), colour in zip(logs.items(), cycle(colours), strict=False)
        ]
        ax.set_ylim(bottom=0, top=1.02 if prefix == "recall@1" else None)
        ax.set_xlim(left=0)
        if not any(drawn):
            _not_measured(ax)
    look.legend(figure)
    return figure


def _curves(axes: Axes, log: pd.DataFrame, name: str, prefix: str, colour: str) -> int:
    """Draw the columns of one model's log that begin with a prefix; how many there are."""
    columns = sorted(column for column in log if column.startswith(prefix) and log[column].notna().any())
    for dash, column in zip(look.DASHES, columns, strict=False):
        known = log[["seconds", column]].dropna()
        smooth = known.rolling(max(1, len(known) // 60), min_periods=1).mean()  # single steps are noisy
        label = f"{name}{column.removeprefix(prefix).replace('/', ', ')}"
        style = {"color": colour, "linestyle": dash, "linewidth": 1.6, "label": label, "gid": f"line {label}"}
        axes.plot(smooth["seconds"] / 60, smooth[column], **style)
    return len(columns)
