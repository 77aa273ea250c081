"""The look that all figures share: colours, context axes, direct labels, and SVG or PNG bytes.

Colours are Okabe and Ito's, told apart under the common colour-vision deficiencies; lines differ in dash as well.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from configs.load import SystemSpec

INK, MUTED, GRID = "#1f2933", "#66717f", "#e4e8ee"
OURS = "#0072b2"
OTHERS = (
    ("#e69f00", "-"),
    ("#009e73", "-"),
    ("#d55e00", "-"),
    ("#cc79a7", "--"),
    ("#56b4e9", ":"),
    ("#8a6d00", "-."),
    ("#5b4a9e", "--"),
    ("#7a7f87", "-"),
)
STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#b6bfca",
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "svg.hashsalt": "msa",  # the same data give the same bytes
    "figure.constrained_layout.use": True,
}

# titles, ticks and saving read the parameters at their own time, so a context manager around the axes would not do
matplotlib.rcParams.update(STYLE)

Style = dict[str, tuple[str, str, float]]


def new(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (9.6, 3.9), **options
) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot's state, and its axes in reading order; ``size`` in inches."""
    figure = Figure(figsize=size)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def styles(systems: dict[str, SystemSpec], names: Sequence[str], ours: str) -> Style:
    """Colour, dash and line width of each system: ours in front, floor and ceiling in grey, the others by their order."""
    chosen: Style = {}
    others = iter(OTHERS * len(names))
    for name in names:
        if name == ours:
            chosen[name] = (OURS, "-", 2.6)
        elif systems[name].reads_gold:
            chosen[name] = (INK, (0, (1, 1.5)), 1.2)
        elif systems[name].kind == "closed_book":
            chosen[name] = (MUTED, (0, (1, 1.5)), 1.2)
        else:
            colour, dash = next(others)
            chosen[name] = (colour, dash, 1.7)
    return chosen


def context_axis(axes: Axes, tokens: dict[str, int], room: float = 0.11) -> None:
    """A logarithmic x axis that is ticked at the named contexts, those apart that are ``room`` of its width from the next."""
    axes.set_xscale("log")
    kept: list[str] = []
    span = max(tokens.values()) / min(tokens.values())
    for name in sorted(tokens, key=tokens.__getitem__, reverse=True):
        if not kept or tokens[kept[-1]] / tokens[name] > span**room:
            kept.append(name)
    axes.set_xticks([tokens[name] for name in kept], kept)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("memory, tokens")


def cost_axis(axes: Axes) -> None:
    """A logarithmic y axis, once all is drawn, with plain numbers; between the powers of ten too where it spans few."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if high < 20 * low:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.062) -> None:
    """Write each line's name beside its last point, moved apart where they would collide.

    Args:
        axes: axes whose limits are final.
        ends: (x, y, text, colour) of each line's last point.
        gap: smallest distance of two labels, as a share of the axes' height.
    """
    transform = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        ((transform.transform((x, y))[1], x, y, text, colour) for x, y, text, colour in ends), key=lambda item: item[0]
    )
    heights = _spread([item[0] for item in placed], gap)
    for height, (at, x, _, text, colour) in zip(heights, placed, strict=True):
        right = transform.transform((x, 1))[0]
        axes.annotate(
            text,
            xy=(right, at),
            xytext=(1.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.5, "shrinkA": 1, "shrinkB": 2},
        )


def _spread(heights: list[float], gap: float) -> list[float]:
    """Ascending heights, each at least ``gap`` above the one before, moved as little as merging groups allows."""
    groups: list[list[float]] = []  # [sum of wanted bottoms, count]; a group's labels stand gap apart
    for height in heights:
        groups.append([height, 1])
        while len(groups) > 1 and _bottom(groups[-2], gap) + groups[-2][1] * gap > _bottom(groups[-1], gap):
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
    return [_bottom(group, gap) + index * gap for group in groups for index in range(int(group[1]))]


def _bottom(group: list[float], gap: float) -> float:
    total, count = group
    return total / count - gap * (count - 1) / 2


def svg(figure: Figure) -> bytes:
    """The figure as SVG, without a date, so that equal data give equal bytes."""
    return _bytes(figure, "svg", metadata={"Date": None})


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    return _bytes(figure, "png", dpi=140)


def _bytes(figure: Figure, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, **options)
    return stream.getvalue()
