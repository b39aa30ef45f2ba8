"""The curves of a run: which numbers of its log they are. Their drawing is in figures.py."""

# T records of a log

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Chart", "Series", "charts", "spectrum_chart", "thinned"]

MOST_POINTS = 500  # of a curve; more are not seen, but are read and drawn


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    bound: bool = False
    """A limit, or a level to compare with: drawn dashed and grey, over the whole width where it never changes."""


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


def charts(records: Sequence[Mapping[str, Any]], lambd: float, classes: int = 0) -> list[Chart]:
    """The curves that a log holds, over epochs; those of which there is nothing are left out.

    Args:
        records: of metrics.jsonl, T of them.
        lambd: weight of the off-diagonal terms, with which the floor counts in the loss.
        classes: how many the online kNN tells apart, which makes its chance level; 0: unknown.
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
    knn, probe = series("top-1, %", "knn"), series("linear probe, %", "probe")
    guessed = sorted({*knn.x, *probe.x}) if classes else []
    chance = Series("chance", tuple(guessed), (100 / max(classes, 1),) * len(guessed), bound=True)
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
        Chart("Online kNN, held-out images", "epoch", (knn, probe, chance), zero=True),
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
            kept.append(dataclasses.replace(chart, series=curves))
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


def thinned(curve: Series) -> Series:
    """At most `MOST_POINTS` of a curve's points, evenly spread, its last one included."""
    if len(curve.x) <= MOST_POINTS:
        return curve
    kept = np.linspace(0, len(curve.x) - 1, MOST_POINTS).round().astype(int).tolist()
    return Series(curve.name, tuple(curve.x[i] for i in kept), tuple(curve.y[i] for i in kept), curve.bound)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
