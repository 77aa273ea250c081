"""Heat maps of needles: by system, by task, and by depth, against memory size."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from reports import sources
from reports.evidence import NEEDLE_MEAN, CellKey, Evidence
from reports.figures import look
from reports.needle_depth import BINS, by_depth, depths
from reports.published.reference import Reference
from reports.rivals import Contenders, in_order
from reports.tables.table import PointColumn

HEAT = LinearSegmentedColormap.from_list("heat", ["#fdf3e7", "#f6c98f", "#7fb8d8", "#0b5c94"])


class Spot(NamedTuple):
    """A field of a map: its value, or nan and a word in its place; a link to its record."""

    value: float
    word: str = ""
    link: str = ""


def _heat(axes: Axes, rows: dict[str, list[Spot]], columns: list[str], title: str) -> None:
    """A heat map from 0 to 1 with the number in each field."""
    values = np.array([[spot.value for spot in line] for line in rows.values()], dtype=float)
    edges = {"edgecolors": look.BACK, "linewidth": 1.5}
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=HEAT, vmin=0, vmax=1, **edges)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows), color=look.INK)
    axes.set(title=title)
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for row, spots in enumerate(rows.values()):
        for column, (value, word, link) in enumerate(spots):
            known = not np.isnan(value)
            ink = look.MUTED if not known else "white" if value > 0.72 else "#1f2934"  # on a coloured field
            place = {"ha": "center", "va": "center", "fontsize": 8.5 if known else 7, "color": ink}
            text = f"{value:.2f}".replace("0.", ".") if known and len(columns) > 6 else f"{value:.2f}"
            axes.text(column + 0.5, row + 0.5, text if known else word, **place).set_url(link or None)


def _measured(evidence: Evidence, cells: dict[str, list[CellKey]]) -> dict[str, list[Spot]]:
    """The accuracy of cells, a row a name."""
    found: dict[str, list[Spot]] = {}
    for name, line in cells.items():
        for cell in line:
            row = evidence.row(cell)
            if row is None or row.value is None:
                spot = Spot(np.nan, PointColumn("", "").shown(row)[0].text)
            else:
                says = f"{name}, {cell.context}: {row.value:.3f} ({row.low:.3f} to {row.high:.3f}), n = {row.n}"
                spot = Spot(row.value, link=sources.first(sources.of(evidence, row), says))
            found.setdefault(name, []).append(spot)
    return found


def _known(rows: dict[str, list[Spot]]) -> bool:
    return any(not np.isnan(spot.value) for line in rows.values() for spot in line)


def _size(contexts: int, rows: int) -> tuple[float, float]:
    return (2.6 + 0.44 * max(contexts, 5), 0.8 + 0.3 * max(rows, 5))


def needles(evidence: Evidence, reference: Reference) -> Figure | None:
    """Mean of the eight needle tasks, system by context, beside the paper's Figure 4."""
    published = reference.needles
    cells = {
        evidence.title(system): [CellKey(system, NEEDLE_MEAN, context) for context in evidence.contexts]
        for system in in_order(evidence, reference.played_by["ours"])
    }
    rows = _measured(evidence, cells)
    if not _known(rows):
        return None
    figure, (left, right) = look.new(2, size=_size(len(evidence.contexts), len(rows)))
    _heat(left, rows, evidence.contexts, "Measured here")
    theirs = {name: list(map(Spot, values)) for name, values in published.series.items()}
    _heat(right, theirs, published.contexts, "The paper's Figure 4")
    return figure


def needle_subtasks(evidence: Evidence, reference: Reference) -> Figure | None:
    """MSA and the best of its rivals on each needle task, task by context."""
    tasks, ours = evidence.tasks_of_role("needles"), reference.played_by["ours"]
    systems = [ours, Contenders.of(evidence, ours, NEEDLE_MEAN).rival]
    maps = {}
    for system in systems:
        if system in evidence.systems:
            cells = {
                _short(evidence.title(task)): [CellKey(system, task, context) for context in evidence.contexts]
                for task in tasks
            }
            maps[evidence.title(system)] = _measured(evidence, cells)
    maps = {title: rows for title, rows in maps.items() if _known(rows)}
    if not maps:
        return None
    figure, axes = look.new(len(maps), size=_size(len(evidence.contexts), len(tasks)))
    for ax, (title, rows) in zip(axes, maps.items(), strict=True):
        _heat(ax, rows, evidence.contexts, f"{title}, by task")
    return figure


def _short(title: str) -> str:
    """A task's title without what all needle tasks share."""
    return re.sub(r"^Needles?[,:]? ", "", title)


def needle_depths(evidence: Evidence, reference: Reference) -> Figure | None:
    """Accuracy by depth of the needle and memory size, of questions on one document: MSA and the best of its rivals."""
    ours = reference.played_by["ours"]
    maps, places = {}, depths(evidence)
    for system in (ours, Contenders.of(evidence, ours, NEEDLE_MEAN).rival):
        if system in evidence.systems:
            found = {context: by_depth(evidence, system, context, places[context]) for context in evidence.contexts}
            maps[system] = {
                f"{low:.0%} to {high:.0%}": [
                    _at_depth(evidence, system, context, values.get(low)) for context, values in found.items()
                ]
                for low, high in BINS
            }
    maps = {system: rows for system, rows in maps.items() if _known(rows)}
    if not maps:
        return None
    figure, axes = look.new(len(maps), size=_size(len(evidence.contexts), len(BINS)))
    for ax, (system, rows) in zip(axes, maps.items(), strict=True):
        _heat(ax, rows, evidence.contexts, evidence.title(system))
        ax.set_ylabel("depth of the needle")
    return figure


def _at_depth(evidence: Evidence, system: str, context: str, values: list[float] | None) -> Spot:
    if not values:
        return Spot(np.nan)
    cells = [CellKey(system, task, context) for task in evidence.tasks_of_role("needles")]
    mean = float(np.mean(values))
    return Spot(mean, link=sources.first(sources.runs(evidence, cells), f"{mean:.3f}, n = {len(values)} questions"))
