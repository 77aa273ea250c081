"""Figures of quality: scores and recall against memory size, each beside the paper's where there is one.

Every figure is a function of the evidence and the reference, and None while there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import sources
from reports.evidence import ACCURACY, NEEDLE_MEAN, RECALL, CellKey, Evidence, SummaryRow
from reports.figures import look
from reports.figures.look import Line, Look
from reports.published.reference import Curves, Reference
from reports.rivals import Contenders, in_order
from reports.tables.causes import routed_share


def measured(rows: Sequence[SummaryRow]) -> np.ndarray:
    """Points [contexts, 4] of rows of the summary: tokens, value, low, high. A lone value stands in for its ends."""
    ends = [(row.value, row.value) if row.low is None else (row.low, row.high) for row in rows]
    points = [(row.context_tokens, row.value, *end) for row, end in zip(rows, ends, strict=True)]
    return np.array(points, dtype=float).reshape(-1, 4)


def line(evidence: Evidence, rows: Sequence[SummaryRow], name: str, style: Look) -> Line:
    """A line through rows of the summary, each point with its record."""
    links = []
    for row in rows:
        ends = "" if row.low is None else f" ({row.low:.3g} to {row.high:.3g})"
        says = f"{name}, {row.context}: {row.value:.3g}{ends}, n = {row.n}"
        links.append(sources.first(sources.of(evidence, row), says))
    return Line(measured(rows), name, style, links)


def accuracy(evidence: Evidence, reference: Reference, task: str, systems: Sequence[str]) -> list[Line]:
    """The accuracy of systems at a task."""
    chosen = look.looks(evidence, reference.played_by["ours"])
    lines = [line(evidence, evidence.points(name, task), evidence.title(name), chosen[name]) for name in systems]
    return [one for one in lines if len(one.points)]


def _share_axes(axes: Axes, sizes: dict[str, int], label: str, title: str, lines: Sequence[Line], top: int = 1) -> None:
    look.context_axis(axes, sizes)
    axes.set(ylim=(0, top), ylabel=label, title=title)
    look.draw(axes, lines)


def overview(evidence: Evidence, reference: Reference) -> Figure | None:
    """Accuracy against memory size: MSA, the best of its rivals, ceiling and floor by name, all others in grey."""
    tasks = [*evidence.tasks_of_role("scaling")[:1], *([NEEDLE_MEAN] if evidence.needle_tasks else [])]
    tasks += evidence.tasks_of_role("multi_hop")[:1]
    ours = reference.played_by["ours"]
    tasks = [task for task in tasks if any(evidence.points(system, task) for system in evidence.systems)]
    if not tasks:
        return None
    figure, axes = look.new(len(tasks), size=(4.7, 3.4))
    for ax, task in zip(axes, tasks, strict=True):
        field = Contenders.of(evidence, ours, task)
        rival = Look(look.OTHERS[0][0], "-", 2.0, look.OTHERS[0][1])
        roles = {
            field.rival: rival,
            field.ceiling: Look(look.INK, ":", 1.3, "2"),
            field.floor: Look(look.MUTED, ":", 1.3, "1"),
            ours: Look(look.OURS, "-", 2.8, "o"),
        }
        faded = Look(look.FADED, "-", 1.0, ".")
        names = sorted(evidence.systems, key=lambda name: name in roles)
        lines = [
            line(evidence, evidence.points(name, task), evidence.title(name), roles.get(name, faded)) for name in names
        ]
        look.context_axis(ax, evidence.tokens, room=0.2)
        ax.set(ylim=(0, 1), ylabel=ACCURACY, title=evidence.title(task))
        look.draw(ax, [one for one in lines if len(one.points)])
        for stroke in ax.get_lines():
            stroke.set_label(None)  # named at its end, or grey
        rival_title = "\n".join(wrap(field.rival_title, 16))
        short = {ours: "MSA", field.ceiling: "ceiling", field.floor: "floor", field.rival: rival_title}
        ends = [(one, short[name]) for name, one in zip(names, lines, strict=True) if name in short and len(one.points)]
        look.label_ends(ax, [(*one.end[:2], text, one.look.colour) for one, text in ends])
    return figure


def scaling(evidence: Evidence, reference: Reference) -> Figure | None:
    """Accuracy against memory size of every system, beside the paper's Figure 1."""
    tasks = evidence.tasks_of_role("scaling")
    ordered = in_order(evidence, reference.played_by["ours"])
    lines = accuracy(evidence, reference, tasks[0], ordered) if tasks else []
    if not lines:
        return None
    figure, (left, right) = look.new(2, size=(5.4, 3.7))
    _share_axes(left, evidence.tokens, ACCURACY, "Measured here", lines)
    published = reference.scaling
    sizes = {name: evidence.experiment.contexts[name] for name in published.contexts}
    _share_axes(right, sizes, published.unit, "The paper's Figure 1", _published(published, sizes), top=5)
    look.legend(figure)
    return figure


def _published(published: Curves, sizes: dict[str, int]) -> list[Line]:
    """The paper's curves, ours first. A curve that stops early has fewer values than there are contexts."""
    chosen = [Look(look.OURS, "-", 2.8, "o"), *(Look(colour, "-", 1.3, marker) for colour, marker in look.OTHERS)]
    lines = []
    for (name, values), style in zip(published.series.items(), chosen, strict=False):
        points = [(size, value, value, value) for size, value in zip(sizes.values(), values, strict=False)]
        lines.append(Line(np.array(points), name, style))
    return lines


def recall(evidence: Evidence, reference: Reference) -> Figure | None:
    """Recall of the gold documents against memory size: by layer on the scaling task, over all rounds on two hops."""
    ours = reference.played_by["ours"]
    chosen = look.looks(evidence, ours)
    if ours not in chosen:
        return None
    panels = []
    for task in evidence.tasks_of_role("scaling"):
        layers = [metric for metric in evidence.recalls(ours, task) if metric.count("/") == 1]
        lines = []
        for metric, dash, marker in zip(layers, cycle(look.DASHES), cycle("oPdh"), strict=False):
            style, name = Look(chosen[ours].colour, dash, 2.4, marker), f"MSA, {metric.partition('/')[2]}"
            lines.append(line(evidence, evidence.points(ours, task, metric), name, style))
        panels.append((task, RECALL, lines))
    for task in evidence.tasks_of_role("multi_hop"):
        cells = {size: CellKey(ours, task, context) for context, size in evidence.tokens.items()}
        shares = [(size, cell, share) for size, cell in cells.items() if (share := routed_share(evidence, cell))]
        points = [(size, share.value, share.low, share.high) for size, _, share in shares]
        links = [
            sources.first(sources.runs(evidence, [cell]), f"MSA, {cell.context}: {share.value:.3f}, n = {share.n}")
            for _, cell, share in shares
        ]
        points = np.array(points, dtype=float).reshape(-1, 4)
        panels.append((task, "gold documents found", [Line(points, "MSA, all rounds and layers", chosen[ours], links)]))
    for task, _, lines in panels:
        lines += _retrievers(evidence, chosen, task, ours)
        lines[:] = [one for one in lines if len(one.points)]
    if not any(lines for _, _, lines in panels):
        return None
    figure, axes = look.new(len(panels), size=(5.4, 3.4))
    for ax, (task, label, lines) in zip(axes, panels, strict=True):
        _share_axes(ax, evidence.tokens, label, evidence.title(task), lines)
    look.legend(figure)
    return figure


def _retrievers(evidence: Evidence, chosen: dict[str, Look], task: str, ours: str) -> list[Line]:
    """Recall@16 of every system that retrieves, without MSA's variants, which route as it does."""
    specs = evidence.experiment.systems
    return [
        line(evidence, evidence.points(system, task, metric), evidence.title(system), style._replace(width=1.5))
        for system, style in chosen.items()
        if specs[system].kind != specs[ours].kind
        for metric in evidence.recalls(system, task)
    ]


def interleave(evidence: Evidence, reference: Reference) -> Figure | None:
    """Two-hop accuracy with and without Memory Interleave, beside the paper's Table 4."""
    tasks, ablation = evidence.tasks_of_role("multi_hop"), reference.ablation
    roles = (reference.played_by["ours"], reference.played_by["without_interleave"])
    systems = [name for name in roles if name in evidence.systems]
    lines = accuracy(evidence, reference, tasks[0], systems) if tasks else []
    if not lines:
        return None
    figure, (left, right) = look.new(2, size=(5.4, 3.4))
    _share_axes(left, evidence.tokens, ACCURACY, f"Measured here: {evidence.title(tasks[0])}", lines)
    for index, (name, values) in enumerate(ablation.rows.items()):
        places = np.arange(len(values)) + 0.19 * index
        colour = [look.OURS, *(colour for colour, _ in look.OTHERS)][index]
        right.barh(places, values, height=0.17, color=colour, label=name)
        for place, value in zip(places, values, strict=True):
            right.text(value + 0.06, place, f"{value:.2f}", va="center", fontsize=8.5)
    titles = [text.replace(" (", "\n(").replace(" of ", " of\n") for text in ablation.columns]
    right.set_yticks(np.arange(len(titles)) + 0.28, titles)
    right.set(xlim=(0, 5), xlabel="judge score, 0-5", xticks=range(6), title="The paper's Table 4")
    right.invert_yaxis()
    right.grid(False, axis="y")
    look.legend(figure)
    return figure
