"""Draws charts as SVG in the colors of the page, and correlation matrices as pixels."""

# d features of a block of C

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import MissingExtraError
from barlowtwins.reports.charts import Chart, thinned

__all__ = ["correlation_pixels", "draw", "require_matplotlib", "tick"]

SIZE = (4.6, 2.5)  # inches; at the width of a phone, letters are still 10 pixels high

# Placeholders for the colors of the page (page.css); nothing else in a drawing has these colors.
TEXT, GRID, COLORS = "#010203", "#010204", ("#010205", "#010206", "#010207", "#010208")
OF_THE_PAGE = {TEXT: "currentColor", GRID: "var(--line)"} | {c: f"var(--s{i})" for i, c in enumerate(COLORS)}


def require_matplotlib() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "report") from None


def draw(chart: Chart) -> str:
    """Return the chart as an `<svg>` element, without title and legend.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": chart.title,
        "font.size": 10,
        "path.simplify_threshold": 0.2,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _draw_curves(axes, chart)
        _scale(axes, chart)
        axes.grid(visible=True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, colors=TEXT)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xlabel(chart.x_label, color=TEXT)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _of_the_page(file.getvalue(), chart.title)


def _draw_curves(axes: Any, chart: Chart) -> None:
    for curve in map(thinned, chart.series):
        color = color_of(chart, curve.name)
        if curve.bound and len(set(curve.y)) == 1:  # also visible with a single point
            axes.axhline(curve.y[0], color=color, linestyle="--", linewidth=1.3)
            continue
        axes.plot(
            curve.x,
            curve.y,
            color=color,
            linestyle="--" if curve.bound else "-",
            linewidth=1.3 if curve.bound else 2,
            marker="o" if len(curve.x) <= 12 and not curve.bound else None,
            markersize=4,
            solid_capstyle="round",
            solid_joinstyle="round",
        )


def _scale(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values = [y for curve in chart.series for y in curve.y]
    if chart.log:
        axes.set_yscale("log")
        few = max(values) < 100 * min(y for y in values if y > 0)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=7))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if chart.zero:
            axes.set_ylim(bottom=0)
    if chart.x_label == "epoch":
        axes.set_xlim(left=0, right=max(axes.get_xlim()[1], 1.0))
    left, right = axes.get_xlim()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=right - left > 2))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def tick(value: float) -> str:
    """Format a number at an axis without a separate factor: 250,000; 2 M; 0.0005."""
    size = abs(value)
    if size >= 1e6:
        text = f"{size / 1e6:,.6g} M"
    elif size >= 1000:
        text = f"{size:,.6g}"
    elif size >= 1e-4 or not size:
        text = f"{size:.4g}"
    else:
        digits, _, power = f"{size:.3g}".partition("e")
        text = f"{digits}e{int(power)}"
    return f"\u2212{text}" if value < 0 else text


def color_of(chart: Chart, name: str) -> str:
    """Return the placeholder color of a curve by its name; gray for bounds."""
    measured = [curve.name for curve in chart.series if not curve.bound]
    return COLORS[(0, 1, 3)[measured.index(name) % 3]] if name in measured else COLORS[2]


def page_color(color: str) -> str:
    """Return the CSS color of the page for a placeholder."""
    return OF_THE_PAGE[color]


def _of_the_page(svg: str, title: str) -> str:
    """Return only the element, scalable and in the colors of the page, with `title` in its ids to make them unique."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'^<svg\b([^>]*?)\s(?:width|height)="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg\b([^>]*?)\s(?:width|height)="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
    for color, of_the_page in OF_THE_PAGE.items():
        svg = svg.replace(color, of_the_page)
    return svg.strip()


def correlation_pixels(correlation: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return (d, d) entries from -1 to 1 as colors (d, d, 3): blue below 0, black at 0, red to white up to 1.

    The scale is the magnitude to the power of 0.7, so that 0.05 is visible next to 1.
    """
    c = np.nan_to_num(np.clip(np.asarray(correlation, np.float32), -1, 1))
    t = np.sign(c) * np.abs(c) ** 0.7
    channels = [np.interp(t, STOPS[:, 0], STOPS[:, 1 + i]) for i in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


STOPS = np.array(
    [  # value, red, green, blue
        [-1.0, 190, 230, 255],
        [-0.5, 40, 120, 215],
        [0.0, 16, 18, 32],
        [0.5, 190, 45, 75],
        [0.8, 250, 150, 60],
        [1.0, 255, 250, 205],
    ]
)
