"""The report's figures, each from the summary's rows; beside a measured panel stands the paper's, where there is one.

Every function takes the evidence and the reference and gives a figure, or None while there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from reports import plotting
from reports.diagnosis import routed_share
from reports.evidence import NEEDLE_MEAN, NOT_MEASURED, Evidence
from reports.statistics import slope_interval
from reports.tables import SHORT, seconds_text

HEAT = LinearSegmentedColormap.from_list("heat", ["#fdf3e7", "#f6c98f", "#7fb8d8", "#0b5c94"])
Reference = dict[str, Any]


def _tokens(evidence: Evidence) -> dict[str, int]:
    return {name: evidence.experiment.contexts[name] for name in evidence.experiment.profile.contexts}


def _styles(evidence: Evidence, reference: Reference) -> plotting.Style:
    return plotting.styles(evidence.experiment.systems, evidence.experiment.profile.systems, reference["roles"]["ours"])


def _series(evidence: Evidence, system: str, task: str, metric: str) -> np.ndarray:
    """Measured points [contexts, 4]: tokens, value, low, high; a value without an interval stands in for its ends."""
    rows = [evidence.point(system, task, context, metric) for context in evidence.experiment.profile.contexts]
    points = [
        (
            row["context_tokens"],
            row["value"],
            *(row["value"] if row[end] is None else row[end] for end in ("low", "high")),
        )
        for row in rows
        if row
    ]
    return np.array(points, dtype=float).reshape(-1, 4)


def _lines(axes: Axes, series: Sequence[tuple[np.ndarray, str, tuple[str, Any, float]]], label: bool = True) -> None:
    """Lines with interval bands and their names at the right end; the widest line lies on top."""
    for points, _, (colour, dash, width) in sorted(series, key=lambda item: item[2][2]):
        axes.plot(
            points[:, 0],
            points[:, 1],
            color=colour,
            linestyle=dash,
            linewidth=width,
            marker="o",
            markersize=1.2 + 1.3 * width,
            clip_on=False,
        )
        if len(points) > 1:
            axes.fill_between(points[:, 0], points[:, 2], points[:, 3], color=colour, alpha=0.13, linewidth=0)
        else:
            axes.vlines(points[:, 0], points[:, 2], points[:, 3], color=colour, linewidth=1)
    if label:
        plotting.label_ends(axes, [(points[-1, 0], points[-1, 1], name, style[0]) for points, name, style in series])


def _accuracy(evidence: Evidence, reference: Reference, task: str, systems: Sequence[str]) -> list:
    styles = _styles(evidence, reference)
    found = [
        (_series(evidence, system, task, "accuracy"), evidence.title(system), styles[system]) for system in systems
    ]
    return [item for item in found if len(item[0])]


def scaling(evidence: Evidence, reference: Reference) -> Figure | None:
    """Accuracy against memory size of every system, beside the paper's Figure 1."""
    tasks = evidence.tasks_of_kind("scaling")
    series = _accuracy(evidence, reference, tasks[0], evidence.experiment.profile.systems) if tasks else []
    if not series:
        return None
    figure, (left, right) = plotting.new(1, 2, size=(12.4, 4.3))
    plotting.context_axis(left, _tokens(evidence))
    left.set(ylim=(0, 1), ylabel="accuracy", title="Measured here (bands: 95 % intervals)")
    _lines(left, series)
    published = reference["scaling"]
    tokens = {name: evidence.experiment.contexts[name] for name in published["contexts"]}
    plotting.context_axis(right, tokens)
    right.set(ylim=(0, 5), ylabel=published["unit"], title="The paper's Figure 1")
    _lines(right, _published(published, tokens))
    return figure


def _published(published: dict[str, Any], tokens: dict[str, int]) -> list:
    """The paper's curves, ours first; a curve that stops early has fewer values than there are contexts."""
    sizes = list(tokens.values())
    looks = [(plotting.OURS, "-", 2.6), *((colour, dash, 1.4) for colour, dash in plotting.OTHERS)]
    return [
        (np.array([(sizes[index], value, value, value) for index, value in enumerate(values)]), name, look)
        for (name, values), look in zip(published["series"].items(), looks, strict=False)
    ]


def _heat(
    axes: Axes, values: np.ndarray, notes: list[list[str]], rows: list[str], columns: list[str], title: str
) -> None:
    """A heat map from 0 to 1 with the number, or the note where there is none, in each field."""
    axes.imshow(np.ma.masked_invalid(values), cmap=HEAT, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows, color=plotting.INK)
    axes.set(title=title)
    axes.grid(False)
    axes.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(rows)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, notes[row][column], ha="center", va="center", fontsize=7.5, color=plotting.MUTED)
        else:
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=9.5,
                color="white" if value > 0.72 else plotting.INK,
            )


def _measured_heat(
    axes: Axes, evidence: Evidence, cells: list[list[tuple[str, str, str]]], rows: list[str], title: str
) -> bool:
    points = [[evidence.point(*cell) for cell in line] for line in cells]
    values = np.array([[point["value"] if point else np.nan for point in line] for line in points], dtype=float)
    summary = evidence.summary
    statuses = [
        [summary.get((*cell, "accuracy"), {"status": NOT_MEASURED})["status"] for cell in line] for line in cells
    ]
    notes = [[SHORT.get(status, status) for status in line] for line in statuses]
    _heat(axes, values, notes, rows, evidence.experiment.profile.contexts, title)
    return not np.isnan(values).all()


def needles(evidence: Evidence, reference: Reference) -> Figure | None:
    """Mean of the eight needle tasks, system by context, beside the paper's Figure 4."""
    profile, published = evidence.experiment.profile, reference["needles"]
    figure, (left, right) = plotting.new(1, 2, size=(12.4, 0.9 + 0.42 * max(len(profile.systems), 6)))
    cells = [[(system, NEEDLE_MEAN, context) for context in profile.contexts] for system in profile.systems]
    if not _measured_heat(
        left, evidence, cells, [evidence.title(system) for system in profile.systems], "Measured here"
    ):
        return None
    values = np.array(list(published["series"].values()))
    _heat(right, values, [], list(published["series"]), published["contexts"], "The paper's Figure 4")
    return figure


def needle_subtasks(evidence: Evidence, reference: Reference) -> Figure | None:
    """MSA on each needle task, task by context."""
    tasks, ours = evidence.tasks_of_kind("ruler"), reference["roles"]["ours"]
    if not tasks or ours not in evidence.experiment.profile.systems:
        return None
    figure, (axes,) = plotting.new(1, 1, size=(8.2, 0.9 + 0.42 * len(tasks)))
    cells = [[(ours, task, context) for context in evidence.experiment.profile.contexts] for task in tasks]
    titles = [evidence.title(task) for task in tasks]
    return (
        figure
        if _measured_heat(axes, evidence, cells, titles, f"{evidence.title(ours)}, accuracy by subtask")
        else None
    )


def recall(evidence: Evidence, reference: Reference) -> Figure | None:
    """Recall of the gold documents against memory size: by layer on the scaling task, over all rounds on two-hop."""
    ours = reference["roles"]["ours"]
    looks = _styles(evidence, reference)
    if ours not in looks:
        return None
    panels = []
    for task in evidence.tasks_of_kind("scaling"):
        layers = [metric for metric in evidence.recalls(ours, task) if metric.count("/") == 1]
        series = [
            (_series(evidence, ours, task, metric), f"MSA, {metric.partition('/')[2]}", (looks[ours][0], dash, 2.4))
            for dash, metric in zip(("-", "--", ":", "-.") * 9, layers, strict=False)
        ]
        panels.append((task, "recall@16", [*series, *_retrievers(evidence, looks, task, ours)]))
    for task in evidence.tasks_of_kind("multihop"):
        series = [(_routed_shares(evidence, ours, task), "MSA, all rounds and layers", looks[ours])]
        panels.append((task, "gold documents found", [*series, *_retrievers(evidence, looks, task, ours)]))
    panels = [(task, label, [item for item in series if len(item[0])]) for task, label, series in panels]
    if not any(series for _, _, series in panels):
        return None
    figure, axes = plotting.new(1, len(panels), size=(6.2 * len(panels), 3.7))
    for ax, (task, label, series) in zip(axes, panels, strict=True):
        plotting.context_axis(ax, _tokens(evidence))
        ax.set(ylim=(0, 1), ylabel=label, title=evidence.title(task))
        _lines(ax, series)
    return figure


def _retrievers(evidence: Evidence, looks: plotting.Style, task: str, ours: str) -> list:
    """Recall@16 of every system that retrieves and is of another kind than MSA, whose variants route as it does."""
    found = []
    for system, (colour, dash, _) in looks.items():
        if evidence.experiment.systems[system].kind != evidence.experiment.systems[ours].kind:
            found += [
                (_series(evidence, system, task, metric), evidence.title(system), (colour, dash, 1.5))
                for metric in evidence.recalls(system, task)
            ]
    return found


def _routed_shares(evidence: Evidence, system: str, task: str) -> np.ndarray:
    """Share of the gold documents routed to in any round and layer, as :func:`_series`."""
    shares = {
        context: routed_share(evidence, system, task, context) for context in evidence.experiment.profile.contexts
    }
    points = [(evidence.experiment.contexts[context], s.value, s.low, s.high) for context, s in shares.items() if s]
    return np.array(points, dtype=float).reshape(-1, 4)


def interleave(evidence: Evidence, reference: Reference) -> Figure | None:
    """Two-hop accuracy with and without Memory Interleave, beside the paper's Table 4."""
    roles, tasks = reference["roles"], evidence.tasks_of_kind("multihop")
    systems = [
        name for name in (roles["ours"], roles["without_interleave"]) if name in evidence.experiment.profile.systems
    ]
    series = _accuracy(evidence, reference, tasks[0], systems) if tasks else []
    if not series:
        return None
    figure, (left, right) = plotting.new(1, 2, size=(12.4, 3.7))
    plotting.context_axis(left, _tokens(evidence))
    left.set(ylim=(0, 1), ylabel="accuracy", title=f"Measured here: {evidence.title(tasks[0])}")
    _lines(left, series)
    rows, columns = reference["ablation"]["rows"], reference["ablation"]["columns"]
    for index, (name, values) in enumerate(rows.items()):
        right.barh(
            np.arange(len(values)) + 0.19 * index,
            values,
            height=0.17,
            color=[plotting.OURS, "#7fb8d8", "#b9c3cf", "#d8dee6"][index],
        )
        for column, value in enumerate(values):
            right.text(value + 0.04, column + 0.19 * index, f"{value:.2f}  {name}", va="center", fontsize=8.5)
    right.set_yticks(np.arange(len(columns)) + 0.28, [text.replace(" (", "\n(") for text in columns])
    right.set(xlim=(0, 6.6), xlabel="judge score, 0-5", xticks=range(6), title="The paper's Table 4")
    right.invert_yaxis()
    right.grid(False, axis="y")
    return figure


def cost(evidence: Evidence, reference: Reference) -> Figure | None:
    """Latency and memory against memory size on logarithmic axes, with the fitted slopes."""
    tasks = {entry["task"] for entry in evidence.latency.values()}
    panels = (
        ("total_s/median", "seconds for an answer, median", 1.0),
        ("peak_host_bytes", "peak host memory, GB", 1e-9),
        ("index_bytes", "index on disk, GB", 1e-9),
    )
    figure, axes = plotting.new(1, 3, size=(13.4, 4.0))
    drawn = False
    for ax, (metric, label, factor) in zip(axes, panels, strict=True):
        plotting.context_axis(ax, _tokens(evidence), room=0.25)
        ax.set(title=label)
        series = []
        for system, look in _styles(evidence, reference).items():
            points = (
                np.concatenate([_series(evidence, system, task, f"latency/{metric}") for task in sorted(tasks)])
                if tasks
                else np.empty((0, 4))
            )
            points = points[points[:, 1] > 0]
            if len(points):
                points[:, 1:] *= factor
                series.append((points, _with_slope(evidence.title(system), points), look))
        if series:
            drawn = True
            _lines(ax, series, label=False)
            plotting.cost_axis(ax)
            plotting.label_ends(ax, [(points[-1, 0], points[-1, 1], name, look[0]) for points, name, look in series])
        else:
            ax.text(0.5, 0.5, NOT_MEASURED, transform=ax.transAxes, ha="center", color=plotting.MUTED)
    return figure if drawn else None


def _with_slope(name: str, points: np.ndarray) -> str:
    return f"{name}  ∝ n^{slope_interval(points[:, 0], points[:, 1]).value:.2f}" if len(points) > 2 else name


def time_share(evidence: Evidence, reference: Reference) -> Figure | None:
    """Minutes that each system's cells took, with its share of all."""
    minutes = {system: 0.0 for system in evidence.experiment.profile.systems}
    for (system, _, _), runs in evidence.runs.items():
        minutes[system] += sum(run.get("wall_s") or 0.0 for run in runs) / 60
    if not any(minutes.values()):
        return None
    looks, total = _styles(evidence, reference), sum(minutes.values())
    figure, (axes,) = plotting.new(1, 1, size=(8.2, 0.8 + 0.33 * len(minutes)))
    for row, (system, spent) in enumerate(minutes.items()):
        axes.barh(row, spent, height=0.62, color=looks[system][0])
        axes.text(
            spent + max(minutes.values()) * 0.01,
            row,
            f"{seconds_text(60 * spent)}, {spent / total:.0%}",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(minutes)), [evidence.title(system) for system in minutes], color=plotting.INK)
    axes.set(xlabel="minutes over all cells", xlim=(0, max(minutes.values()) * 1.22))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    return figure


def training(evidence: Evidence, reference: Reference) -> Figure | None:
    """Language-model loss, auxiliary loss and router recall of each trained model against training time."""
    logs = {name: log for name, log in evidence.training.items() if len(log)}
    if not logs:
        return None
    figure, axes = plotting.new(1, 3, size=(13.4, 3.8))
    panels = (
        ("lm_loss", "language-model loss, nats a token"),
        ("aux_loss", "auxiliary (routing) loss"),
        ("recall@1", "recall@1 of the routers in training"),
    )
    for ax, (prefix, title) in zip(axes, panels, strict=True):
        ax.set(xlabel="minutes of training", title=title)
        ends = []
        for (name, log), (colour, _) in zip(
            logs.items(),
            ((plotting.INK, "-"), plotting.OTHERS[0], (plotting.OURS, "-"), *plotting.OTHERS[1:]),
            strict=False,
        ):
            for dash, column in zip(
                ("-", "--", ":"), sorted(column for column in log if column.startswith(prefix)), strict=False
            ):
                known = log[["seconds", column]].dropna()
                if len(known):
                    smooth = known.rolling(max(1, len(known) // 60), min_periods=1).mean()  # single steps are noisy
                    ax.plot(smooth["seconds"] / 60, smooth[column], color=colour, linestyle=dash, linewidth=1.6)
                    label = f"{name}{column.removeprefix(prefix).replace('/', ', ')}"
                    ends.append((smooth["seconds"].iloc[-1] / 60, smooth[column].iloc[-1], label, colour))
        ax.set_ylim(bottom=0, top=1.02 if prefix == "recall@1" else None)
        ax.set_xlim(left=0)
        if ends:
            plotting.label_ends(ax, ends)
        else:
            ax.text(0.5, 0.5, NOT_MEASURED, transform=ax.transAxes, ha="center", color=plotting.MUTED)
    return figure


FIGURES: dict[str, Callable[[Evidence, Reference], Figure | None]] = {
    "scaling": scaling,
    "needles": needles,
    "needle_subtasks": needle_subtasks,
    "recall": recall,
    "interleave": interleave,
    "cost": cost,
    "time_share": time_share,
    "training": training,
}
