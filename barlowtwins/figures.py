"""The curves of a run: which numbers they are, and their drawing as SVG that takes its colours from the page."""

# T records of a log, d features of a block of C

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from barlowtwins.errors import MissingExtraError

__all__ = ["Chart", "Series", "charts", "correlation_pixels", "draw", "require_matplotlib", "spectrum_chart"]

MOST_POINTS = 500  # of a curve; more are not seen, but are read and drawn
SIZE = (4.6, 2.5)  # inches: at a phone's width its letters are still 10 pixels high

# Colours that stand for those of the page (page.css); nothing else in a drawing has them.
TEXT, GRID, COLOURS = "#010203", "#010204", ("#010205", "#010206", "#010207", "#010208")
OF_THE_PAGE = {TEXT: "currentColor", GRID: "var(--line)"} | {c: f"var(--s{i})" for i, c in enumerate(COLOURS)}


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    bound: bool = False
    """A limit that another curve cannot pass: drawn dashed and grey."""


@dataclass(frozen=True)
class Chart:
    """Curves over one axis."""

    title: str
    x_label: str
    series: tuple[Series, ...]
    log: bool = False
    """Logarithmic values."""
    note: str = ""
    """What a reader should know, below the curves."""
    zero: bool = False
    """The values' axis begins at 0."""


def charts(records: Sequence[Mapping[str, Any]], lambd: float) -> list[Chart]:
    """The curves that a log holds, over epochs; those of which there is nothing are left out.

    Args:
        records: of metrics.jsonl, T of them.
        lambd: weight of the off-diagonal terms, with which the floor counts in the loss.
    """

    def series(name: str, field: str, factor: float = 1.0, *, bound: bool = False) -> Series:
        found = [
            (float(record["epoch"]), float(record[field]) * factor)
            for record in records
            if _is_number(record.get(field)) and _is_number(record.get("epoch"))
        ]
        x, y = zip(*found, strict=True) if found else ((), ())
        return Series(name, tuple(x), tuple(y), bound)

    rates = (series("weights", "lr"), series("biases, batch norm", "lr_bias"))
    both = series("all parameters", "lr")
    made = [
        Chart(
            "Loss",
            "epoch",
            (series("loss", "loss"), series("its floor", "floor", lambd, bound=True)),
            log=True,
            note="Below the floor the loss cannot go while the diagonal is 1: the batch has fewer images than the "
            "projector has features.",
        ),
        Chart(
            "On and off the diagonal",
            "epoch",
            (
                series("on: sum of (1 - C_ii)²", "on_diagonal"),
                series("off: sum of C_ij²", "off_diagonal"),
                series("floor of off", "floor", bound=True),
            ),
            log=True,
        ),
        Chart("Online kNN, held-out images", "epoch", (series("top-1, %", "knn"), series("linear probe, %", "probe"))),
        Chart(
            "Effective rank of the features",
            "epoch",
            (series("effective rank", "effective_rank"), series("its limit", "rank_limit", bound=True)),
            zero=True,
            note="How many directions the features use (RankMe). Near 1: collapsed.",
        ),
        Chart(
            "Feature deviation",
            "epoch",
            (series("deviation", "feature_deviation"),),
            zero=True,
            note="How far images spread: 1 everywhere alike, 0 all in one point (collapsed).",
        ),
        Chart(
            "Alignment and uniformity of embeddings",
            "epoch",
            (series("alignment", "alignment"), series("uniformity", "uniformity")),
            note="Alignment: how far apart the two views of an image are, 0 at best. Uniformity: how evenly images "
            "spread, -4 at best; 0: all in one point (collapsed).",
        ),
        Chart("Learning rates", "epoch", rates if rates[0].y != rates[1].y else (both,), zero=True),
        Chart("Throughput, average so far", "epoch", (series("images a second", "images_per_second"),), zero=True),
    ]
    kept = []
    for chart in made:
        curves = tuple(curve for curve in chart.series if curve.x and not (chart.log and max(curve.y) <= 0))
        if any(not curve.bound for curve in curves):
            kept.append(Chart(chart.title, chart.x_label, curves, chart.log, chart.note, chart.zero))
    return kept


def spectrum_chart(start: npt.ArrayLike, now: npt.ArrayLike) -> Chart:
    """Singular values of the features (greatest first), each as a part of the greatest, at the start and now."""

    def curve(name: str, values: npt.ArrayLike) -> Series:
        s = np.asarray(values, np.float64)
        s = s / max(float(s.max(initial=0.0)), 1e-30)
        s = s[s > 1e-6]  # below is rounding
        return Series(name, tuple(range(1, len(s) + 1)), tuple(s.tolist()))

    return Chart(
        "Spectrum of the features",
        "direction, strongest first",
        (curve("now", now), curve("at the start", start)),
        log=True,
        note="A curve that falls off early is a dimensional collapse.",
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def thinned(curve: Series) -> Series:
    """At most `MOST_POINTS` of a curve's points, evenly spread, its last one included."""
    if len(curve.x) <= MOST_POINTS:
        return curve
    kept = np.linspace(0, len(curve.x) - 1, MOST_POINTS).round().astype(int).tolist()
    return Series(curve.name, tuple(curve.x[i] for i in kept), tuple(curve.y[i] for i in kept), curve.bound)


def require_matplotlib() -> None:
    """Raise MissingExtraError now rather than in the middle."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "report") from None


def draw(chart: Chart) -> str:
    """The chart as an `<svg>` element, without its title and its key.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

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
        for curve in map(thinned, chart.series):
            one = len(curve.x) == 1
            axes.plot(
                curve.x,
                curve.y,
                color=colour_of(chart, curve.name),
                linestyle="--" if curve.bound else "-",
                linewidth=1.3 if curve.bound else 2,
                marker="o" if one or (len(curve.x) <= 12 and not curve.bound) else None,
                markersize=4,
                solid_capstyle="round",
                solid_joinstyle="round",
            )
        values = [y for curve in chart.series for y in curve.y]
        if chart.log:
            axes.set_yscale("log")
            few = max(values) < 100 * min(y for y in values if y > 0)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=7))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            if chart.zero:
                axes.set_ylim(bottom=0)
        if max(values) >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        else:
            axes.yaxis.set_major_formatter("{x:g}")
        if chart.x_label == "epoch":
            axes.set_xlim(left=0, right=max(axes.get_xlim()[1], 1.0))
        left, right = axes.get_xlim()
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=right - left > 2))
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


def colour_of(chart: Chart, name: str) -> str:
    """The colour that stands for the page's, of a curve by its name: grey for bounds."""
    measured = [curve.name for curve in chart.series if not curve.bound]
    return COLOURS[(0, 1, 3)[measured.index(name) % 3]] if name in measured else COLOURS[2]


def page_colour(colour: str) -> str:
    """What the page calls a colour of a drawing."""
    return OF_THE_PAGE[colour]


def _of_the_page(svg: str, title: str) -> str:
    """The element alone, scaled by the page, in its colours; `title` keeps ids apart that several drawings have."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'^<svg\b([^>]*?)\s(?:width|height)="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg\b([^>]*?)\s(?:width|height)="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
    for colour, of_the_page in OF_THE_PAGE.items():
        svg = svg.replace(colour, of_the_page)
    return svg.strip()


def correlation_pixels(correlation: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """(d, d) entries from -1 to 1 as colours (d, d, 3): blue below 0, near black at 0, through red to white at 1.

    The steps follow the size to the power of 0.7, so that correlations of 0.05 are seen beside those of 1.
    """
    c = np.nan_to_num(np.clip(np.asarray(correlation, np.float32), -1, 1))
    t = np.sign(c) * np.abs(c) ** 0.7
    channels = [np.interp(t, STOPS[:, 0], STOPS[:, 1 + i]) for i in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


STOPS = np.array(
    [  # where, red, green, blue
        [-1.0, 190, 230, 255],
        [-0.5, 40, 120, 215],
        [0.0, 16, 18, 32],
        [0.5, 190, 45, 75],
        [0.8, 250, 150, 60],
        [1.0, 255, 250, 205],
    ]
)
