"""The curves of a run, from its log. They are drawn by figures.py."""

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

MOST_POINTS = 500  # per curve; more points take time and are not visible


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    bound: bool = False
    """A limit or a reference level: dashed and gray, over the whole width if it is constant."""


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes."""

    title: str
    x_label: str
    series: tuple[Series, ...]
    log: bool = False
    """Whether the y axis is logarithmic."""
    note: str = ""
    """An explanation below the curves."""
    zero: bool = False
    """Whether the y axis starts at 0."""


def charts(records: Sequence[Mapping[str, Any]], lambd: float, classes: int = 0) -> list[Chart]:
    """Return the curves of a log over epochs, without empty ones.

    Args:
        records: T records of metrics.jsonl.
        lambd: weight of the off-diagonal terms, and of the lower bound in the loss.
        classes: number of classes of the online kNN, for its chance level; 0 if unknown.
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
            (series("loss", "loss"), series("lower bound", "floor", lambd, bound=True)),
            log=True,
            note="Lower bound of the loss when the diagonal is 1. It is above 0 because the batch has fewer images "
            "than the projector has features.",
        ),
        Chart(
            "On and off the diagonal",
            "epoch",
            (
                series("on: sum of (1 - C_ii)²", "on_diagonal"),
                series("off: sum of C_ij²", "off_diagonal"),
                series("lower bound of off", "floor", bound=True),
            ),
            log=True,
        ),
        Chart("Online kNN, held-out images", "epoch", (knn, probe, chance), zero=True),
        Chart(
            "Effective rank of the features",
            "epoch",
            (series("effective rank", "effective_rank"), series("maximum", "rank_limit", bound=True)),
            zero=True,
            note="Number of directions that the features use (RankMe). Near 1: collapsed.",
        ),
        Chart(
            "Feature deviation",
            "epoch",
            (series("deviation", "feature_deviation"),),
            zero=True,
            note="Spread of the images: 1 is evenly in all directions, 0 is all in one point (collapsed).",
        ),
        Chart(
            "Alignment and uniformity of embeddings",
            "epoch",
            (series("alignment", "alignment"), series("uniformity", "uniformity")),
            note="Alignment: distance between the two views of an image; best is 0. Uniformity: how evenly images "
            "are spread; best is -4, and 0 is all in one point (collapsed).",
        ),
        Chart("Learning rates", "epoch", rates if rates[0].y != rates[1].y else (both,), zero=True),
        Chart("Throughput, average so far", "epoch", (series("images per second", "images_per_second"),), zero=True),
    ]
    kept = []
    for chart in made:
        curves = tuple(curve for curve in chart.series if curve.x and not (chart.log and max(curve.y) <= 0))
        if any(not curve.bound for curve in curves):
            kept.append(dataclasses.replace(chart, series=curves))
    return kept


def spectrum_chart(start: npt.ArrayLike, now: npt.ArrayLike) -> Chart:
    """Return the singular values of the features relative to the largest, at the start and now."""

    def curve(name: str, values: npt.ArrayLike) -> Series:
        s = np.asarray(values, np.float64)
        s = s / max(float(s.max(initial=0.0)), 1e-30)
        s = s[s > 1e-6]  # smaller values are rounding errors
        return Series(name, tuple(range(1, len(s) + 1)), tuple(s.tolist()))

    return Chart(
        "Spectrum of the features",
        "direction, strongest first",
        (curve("now", now), curve("at the start", start)),
        log=True,
        note="A curve that drops early shows a dimensional collapse.",
    )


def thinned(curve: Series) -> Series:
    """Return at most `MOST_POINTS` points of a curve, evenly spread, including the last one."""
    if len(curve.x) <= MOST_POINTS:
        return curve
    kept = np.linspace(0, len(curve.x) - 1, MOST_POINTS).round().astype(int).tolist()
    return Series(curve.name, tuple(curve.x[i] for i in kept), tuple(curve.y[i] for i in kept), curve.bound)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
