"""Quality against cost: which systems no other beats at both."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import sources
from reports.evidence import ACCURACY, LATENCY, CellKey, Evidence, SummaryRow
from reports.figures import look
from reports.published.reference import Reference

COSTS = {  # of the summary: what it is called here, and the factor to that unit
    "total_s/median": ("seconds for an answer, median", 1.0),
    "peak_host_bytes": ("peak host memory, GB", 1e-9),
}
Point = tuple[str, float, SummaryRow]  # system, cost, accuracy


def pareto(evidence: Evidence, reference: Reference) -> Figure | None:
    """Accuracy against latency and against memory, at the largest context where two systems have both."""
    panels = []
    for cost in COSTS:
        found = {context: points(evidence, context, cost) for context in evidence.contexts}
        enough = [context for context in evidence.contexts if len(found[context]) > 1]
        if enough:
            panels.append((cost, enough[-1], found[enough[-1]]))
    if not panels:
        return None
    figure, axes = look.new(len(panels), size=(5.4, 3.7))
    chosen = look.looks(evidence, reference.played_by["ours"])
    for ax, (cost, context, found) in zip(axes, panels, strict=True):
        title, factor = COSTS[cost]
        specs = evidence.experiment.systems
        rivals = [it for it in found if not specs[it[0]].reads_gold and specs[it[0]].kind != "closed_book"]
        front = np.array([(spent * factor, row.value) for _, spent, row in frontier(rivals)]).reshape(-1, 2)
        ax.step(*front.T, where="post", color=look.EDGE, linewidth=5, alpha=0.5, zorder=1, solid_capstyle="round")
        for system, spent, row in sorted(found, key=lambda it: list(chosen).index(it[0])):
            _point(ax, evidence, system, spent * factor, row, chosen[system])
        ax.set(xscale="log", xlabel=title, ylim=(0, 1), ylabel=ACCURACY, title=f"At {context} tokens")
        look.plain_numbers(ax.xaxis)
    look.legend(figure)
    return figure


def points(evidence: Evidence, context: str, cost: str) -> list[Point]:
    """The systems with a cost and an accuracy at a context, at the task whose latency was measured."""
    found = []
    for system, record in evidence.latency.items():
        cell = CellKey(system, record.task, context)
        spent, row = evidence.point(cell, f"{LATENCY}/{cost}"), evidence.point(cell)
        if spent and row and spent.value > 0:
            found.append((system, spent.value, row))
    return found


def frontier(found: list[Point]) -> list[Point]:
    """The points that no other beats: whatever costs no more scores lower. In the order of cost."""
    kept: list[Point] = []
    for point in sorted(found, key=lambda point: (point[1], -point[2].value)):
        if not kept or point[2].value > kept[-1][2].value:
            kept.append(point)
    return kept


def _point(axes: Axes, evidence: Evidence, system: str, cost: float, row: SummaryRow, style: look.Look) -> None:
    name = evidence.title(system)
    says = f"{name}: {row.value:.3f} ({row.low:.3f} to {row.high:.3f}) at {cost:.3g}, n = {row.n}"
    axes.vlines(cost, row.low, row.high, color=style.colour, linewidth=1, gid=f"band {name}")
    axes.plot([], [], color=style.colour, marker=style.marker, linestyle="none", linewidth=0, label=name)
    dots = {"s": 46 if style.width > 2 else 30, "marker": style.marker, "color": style.colour, "zorder": 3}
    link = sources.first(sources.of(evidence, row), says)
    axes.scatter([cost], [row.value], urls=[link or None], gid=f"dots {name}", **dots)
