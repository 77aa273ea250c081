"""A figure as a page holds it: one SVG a panel, so that panels stack on a narrow screen, and the legend as data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import NamedTuple
from urllib.parse import unquote

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

from reports.figures import look

DASHES = {"-": "", "--": "5 3", ":": "1.5 2", "-.": "6 2 1.5 2"}
AXES = re.compile(r'\n  <g id="[\w-]*axes_\d+">.*?\n  </g>', re.DOTALL)  # a panel, as it is indented
SHARED = re.compile(r"\n <defs>\s*<clipPath.*?\n </defs>", re.DOTALL)  # clip paths of the whole figure
STEPS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}  # of SVG
POINT_PX = 1.28  # a panel is drawn at most so large, that the text of all is of one size


class Swatch(NamedTuple):
    """A line of the legend: its name, CSS colour, dash and width, and its marker as an SVG path."""

    name: str
    colour: str
    dash: str
    width: float
    marker: str


class Panel(NamedTuple):
    """A panel of a figure as inline SVG, and the lines that it names."""

    svg: str
    legend: tuple[Swatch, ...]


def panels(figure: Figure, name: str, says: str) -> list[Panel]:
    """The panels of a figure called ``name``, which ``says`` in words what it shows; the figure is used up.

    What panels share stands in the first: a panel is no file of its own.
    """
    legends = [*figure.legends, *(item for axes in figure.axes if (item := axes.get_legend()))]
    for item in legends:
        item.set(visible=False, in_layout=False)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    text = inline(look.drawn(figure), name)
    shared = SHARED.search(text)
    groups = list(AXES.finditer(text))
    found, height = [], figure.get_figheight() * 72
    for number, axes in enumerate(figure.axes):
        own = text
        for other in groups[:number] + groups[number + 1 :]:
            own = own.replace(other[0], "")
        if number and shared:
            own = own.replace(shared[0], "")
        box = axes.get_tightbbox(renderer).padded(5).transformed(figure.dpi_scale_trans.inverted())
        x, y, width, tall = (72 * length for length in (box.x0, box.y0, box.width, box.height))
        title = ": ".join(filter(None, (says, axes.get_title(loc="left") or axes.get_title())))
        view = f'viewBox="{x:.1f} {height - y - tall:.1f} {width:.1f} {tall:.1f}"'
        view += f' style="max-width:{width * POINT_PX:.0f}px"'
        named = f'role="graphics-document" aria-roledescription="chart" aria-label="{escape(title)}"'
        found.append(Panel(own.replace("<svg", f"<svg {view} {named}", 1), tuple(swatches(axes))))
    return found


def swatches(axes: Axes) -> Iterator[Swatch]:
    """The legend of a panel, in the order of the lines."""
    for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
        if isinstance(handle, Line2D):
            style, marker = handle.get_linestyle(), handle.get_marker()
            colour, width = variable(handle.get_color()), handle.get_linewidth()
            yield Swatch(name, colour, DASHES.get(style, ""), width, marker_path(marker) if marker != "None" else "")
        else:
            filled = handle.patches[0] if isinstance(handle, BarContainer) else handle
            yield Swatch(name, variable(filled.get_facecolor()), "", 0, marker_path("s"))


def variable(colour: object) -> str:
    """A colour as a CSS value that suits the page."""
    text = look.hexadecimal(colour)
    return f"var(--c{text[1:]})" if text in look.DARK else text


def marker_path(marker: str) -> str:
    """A marker of matplotlib as the data of an SVG path, eight units wide around 0."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    steps = []
    for points, code in path.iter_segments(simplify=False):
        ends = [] if code == Path.CLOSEPOLY else points.reshape(-1, 2) * (8, -8)
        steps.append(STEPS[code] + " ".join(f"{x:.2f} {y:.2f}" for x, y in ends))
    return "".join(steps)


def inline(text: str, name: str) -> str:
    """An SVG file as an element of a page: ids that begin with ``name``, and links with tooltips."""
    text = re.sub(r"<svg[^>]*>", "<svg>", text[text.index("<svg") :], count=1)
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', text)) | set(re.findall(r'id="(axes_\d+)"', text))
    return re.sub(r"<[^>]+>", lambda tag: _tag(tag[0], name, used), text)


def _tag(tag: str, name: str, used: set[str]) -> str:
    """A tag of an SVG file as one of a page, without an id that nothing uses."""
    tag = re.sub(r'id="(?:line|dots|band) ([^"]*)"', r'data-s="\1"', tag)
    tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
    tag = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", tag)
    return re.sub(r'<a xlink:href="([^"#]*)#?([^"]*)"[^>]*>', _link, tag)


def _link(found: re.Match) -> str:
    """A point of a figure: its record, and what it is. The tables hold the same links for the keyboard."""
    says = escape(unquote(found[2]))
    return f'<a href="{found[1]}" tabindex="-1" aria-label="{says}"><title>{says}</title>'
