"""The look that all figures share: colours, markers, context axes, lines and their legend, and SVG.

Colours are Okabe and Ito's, some darkened until they stand out on white, told apart under the common colour-vision
deficiencies; a system has a marker of its own as well. Each colour has a twin for a dark page.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.optimize import isotonic_regression

from reports.evidence import Evidence
from reports.rivals import in_order

INK, MUTED, GRID, EDGE, BACK = "#1f2933", "#5b6672", "#e4e8ee", "#b6bfca", "#fffffe"
OURS = "#0072b2"
OTHERS = tuple(
    zip(
        ("#d55e00", "#008a65", "#b8589a", "#c07f00", "#5b4a9e", "#2b94cc", "#7d6200", "#6f7680"),
        "s^Dv<>Xp",
        strict=True,
    )
)
FADED = "#c3cad3"
# how each colour looks on a dark page
DARK = {
    INK: "#e6edf3",
    MUTED: "#9aa7b4",
    GRID: "#2b313a",
    EDGE: "#57606a",
    BACK: "#0d1117",
    OURS: "#4aa8e8",
    FADED: "#4a535e",
    "#d55e00": "#ff8a3d",
    "#008a65": "#2fc79b",
    "#b8589a": "#e290c5",
    "#c07f00": "#f0b13c",
    "#5b4a9e": "#a595ee",
    "#2b94cc": "#7cc7f0",
    "#7d6200": "#c9ad45",
    "#6f7680": "#a3abb6",
}
STYLE = {
    "text.parse_math": False,  # titles are people's: a dollar is a dollar
    "text.usetex": False,
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": EDGE,
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
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "msa",  # the same data give the same bytes
    "svg.fonttype": "none",
    "savefig.dpi": 140,
    "figure.constrained_layout.use": True,
}
# titles, ticks and saving read the parameters at their own time, so a context manager around the axes would not do
matplotlib.rcParams.update(STYLE)

DASHES = ("-", "--", ":", "-.")
PANEL = (4.7, 3.3)  # inches of a panel: its text can be read on a screen of 390 pixels


class Look(NamedTuple):
    """The colour, dash, width and marker of a line."""

    colour: str
    dash: str
    width: float
    marker: str


class Line(NamedTuple):
    """A line: points [contexts, 4] (tokens, value, low, high), its name, its look, and a link a point where known."""

    points: np.ndarray
    name: str
    look: Look
    links: Sequence[str] = ()

    @property
    def end(self) -> tuple[float, float, str, str]:
        """Its last point, its name and its colour."""
        return self.points[-1, 0], self.points[-1, 1], self.name, self.look.colour


def new(columns: int = 1, *, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot's state, and its panels from left to right; ``size`` of a panel in inches."""
    figure = Figure(figsize=(columns * size[0], size[1]))
    return figure, list(figure.subplots(1, columns, squeeze=False).flat)


def looks(evidence: Evidence, ours: str) -> dict[str, Look]:
    """The look of each of the profile's systems: ours in front, its variants thin and in its colour, floor and ceiling
    dotted grey, the others by order."""
    chosen, specs = {}, evidence.experiment.systems
    others, variants = cycle(OTHERS), cycle((("--", "P"), ("-.", "d"), (":", "h")))
    for name in in_order(evidence, ours):
        if name == ours:
            chosen[name] = Look(OURS, "-", 2.8, "o")
        elif specs[name].reads_gold or specs[name].kind == "closed_book":
            chosen[name] = Look(*((INK, ":", 1.3, "2") if specs[name].reads_gold else (MUTED, ":", 1.3, "1")))
        elif ours in specs and specs[name].kind == specs[ours].kind:
            dash, marker = next(variants)
            chosen[name] = Look(OURS, dash, 1.4, marker)
        else:
            colour, marker = next(others)
            chosen[name] = Look(colour, "-", 1.5, marker)
    return chosen


def draw(axes: Axes, lines: Sequence[Line], bands: bool = True) -> None:
    """Lines, named for the legend, the widest first and on top; ``bands``: its intervals, and those of lone points."""
    widest = max((line.look.width for line in lines), default=0)
    for points, name, (colour, dash, width, marker), links in sorted(lines, key=lambda line: line.look.width < widest):
        x, value, low, high = points.T
        stroke = {"linestyle": dash, "linewidth": width, "marker": marker, "markersize": 0, "zorder": 2 + width}
        axes.plot(x, value, color=colour, label=name, gid=f"line {name}", **stroke)
        dots = {"s": (2.6 + width) ** 2, "marker": marker, "linewidths": 1.0, "clip_on": False, "zorder": 2 + width}
        axes.scatter(x, value, color=colour, urls=list(links) or None, gid=f"dots {name}", **dots)
        if bands and len(points) > 1 and width == widest:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, gid=f"band {name}")
        elif bands and len(points) == 1:
            axes.vlines(x, low, high, color=colour, linewidth=1, gid=f"band {name}")


def legend(figure: Figure) -> None:
    """Name the lines below the panels: once where all panels have the same lines."""
    named = [(axes, *axes.get_legend_handles_labels()) for axes in figure.axes]
    named = [(axes, handles, labels) for axes, handles, labels in named if labels]
    for _, handles, _ in named:
        for handle in handles:
            if isinstance(handle, Line2D):
                handle.set_markersize(5)
    if len(named) > 1 and len({tuple(labels) for _, _, labels in named}) == 1:
        figure.legend(*named[0][1:], loc="outside lower left", ncols=2 * len(named))
        return
    for axes, handles, labels in named:
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2)


def context_axis(axes: Axes, tokens: dict[str, int], room: float = 0.11) -> None:
    """A logarithmic x axis with ticks at the named contexts, without those nearer to the next than ``room`` of it."""
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
    plain_numbers(axes.yaxis)


def plain_numbers(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis, once all is drawn; between the powers of ten too where it spans few."""
    low, high = axis.get_view_interval()
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if high < 20 * low:
        axis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_minor_formatter(NullFormatter())


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.062) -> None:
    """Write each line's name beside its last point, ``gap`` of the axes' height apart at least.

    ``ends`` are (x, y, text, colour) of the last points; the limits of the axes are final.
    """
    transform = axes.transData + axes.transAxes.inverted()
    placed = sorted((*transform.transform((x, y))[::-1], text, colour) for x, y, text, colour in ends)
    rows = [text.count("\n") for *_, text, _ in placed]
    rises = np.cumsum([0.0, *(0.5 * gap * (one + two) for one, two in itertools.pairwise(rows))])
    heights = spread([height for height, *_ in placed] - rises, gap) + rises  # a label of two rows needs more room
    for label_at, (at, right, text, colour) in zip(heights, placed, strict=True):
        line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.5, "shrinkA": 1, "shrinkB": 2}
        places = {"xy": (right, at), "xytext": (1.03, label_at), "xycoords": "axes fraction"}
        axes.annotate(text, **places, color=colour, fontsize=9, va="center", annotation_clip=False, arrowprops=line)


def spread(heights: Sequence[float], gap: float) -> np.ndarray:
    """Ascending heights, each at least ``gap`` above the one before, moved as little as possible."""
    steps = gap * np.arange(len(heights))
    return isotonic_regression(np.asarray(heights) - steps).x + steps


def svg(figure: Figure) -> str:
    """The figure as SVG that suits a light and a dark page; equal data give equal text.

    Text stays text, so that the file is small. The colours are variables with a value for each kind of page.
    """
    light, dark = variables()
    style = f"<style>:root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"
    return drawn(figure).replace("<defs>", f"<defs>\n  {style}", 1)


def variables() -> tuple[str, str]:
    """The colours of a light and of a dark page as CSS variables."""
    return (
        "; ".join(f"--c{colour[1:]}: {colour}" for colour in DARK),
        "; ".join(f"--c{colour[1:]}: {other}" for colour, other in DARK.items()),
    )


def drawn(figure: Figure, **options: object) -> str:
    """The figure as SVG whose colours are variables; ``options`` of savefig."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True, **options)
    colours = re.compile(f"({'|'.join(DARK)})\\b")
    text = re.sub(r"<[^>]+>", lambda tag: colours.sub(lambda it: f"var(--c{it[0][1:]})", tag[0]), stream.getvalue())
    return text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def hexadecimal(colour: object) -> str:
    """A colour as #rrggbb."""
    rows = np.atleast_2d(np.asarray(colour)) if not isinstance(colour, str) else colour
    return to_hex(rows if isinstance(rows, str) else rows[0])
