"""Measures of the representation: rank, deviation, alignment and uniformity, and a verdict on collapse.

Complete collapse: all images have the same features (low deviation). Dimensional collapse: features differ along a few
directions only (low rank). The loss does not always show either.
"""

# N images, D features

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from barlowtwins.core.printing import plural

__all__ = [
    "Verdict",
    "alignment",
    "effective_rank",
    "feature_deviation",
    "judge",
    "judge_loss",
    "singular_values",
    "uniformity",
]

STILL = 0.05  # feature deviation below which images are almost identical
SHRUNK = 0.5  # warn if the effective rank falls below this fraction of its maximum
FEW = 4.0  # directions; fewer cannot distinguish many kinds of images
EARLY = 100  # steps; before that a good verdict means little
WINDOW = 5  # number of logged losses to average, since single values are noisy
RISEN = 1.5  # a loss above this multiple of its best value diverges


def singular_values(features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the singular values of (N, D) features, not centered, largest first: (min(N, D),).

    Computed from the smaller Gram matrix in float64; values below 1e-8 of the largest are rounding errors.
    """
    x = np.asarray(features, np.float64)  # (N, D)
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    values: npt.NDArray[np.float64] = np.sqrt(np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None))
    return values


def effective_rank(features: npt.ArrayLike, eps: float = 1e-7) -> float:
    """Return RankMe (Garrido et al. 2023, eq. 1): exp of the entropy of p = s / sum(s), s the singular values.

    Args:
        features: (N, D), finite.
        eps: avoids the logarithm of zero.

    Returns:
        from 1 (all rows are multiples of one row) to min(N, D) (all directions are used equally).
    """
    s = singular_values(features)
    total = s.sum()
    if total <= 0:
        return 1.0
    p = s / total
    return float(np.exp(-(p * np.log(p + eps)).sum()))


def feature_deviation(features: npt.ArrayLike) -> float:
    """Return the spread of images: sqrt(D) times the mean standard deviation of the features of unit-length rows.

    Chen & He 2021 (SimSiam), figure 2, times sqrt(D).

    Returns:
        0 if all rows have the same direction; 1 if they are spread evenly over all directions.
    """
    unit = _unit(features)  # (N, D)
    return float(unit.std(axis=0).mean() * np.sqrt(unit.shape[1]))


def alignment(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return the distance of the two views of an image: the mean of |x - y|^2 over pairs of unit-length rows.

    Wang & Isola 2020, section 4.1, with exponent 2.

    Args:
        x, y: (N, D), the two views; row i of both is the same image.

    Returns:
        from 0 (the views agree) to 4; 2 for unrelated pairs.
    """
    return float(np.square(_unit(x) - _unit(y)).sum(axis=1).mean())


def uniformity(x: npt.ArrayLike, t: float = 2.0) -> float:
    """Return how evenly images spread on the sphere: the log of the mean of exp(-t |x_i - x_j|^2) over pairs.

    Wang & Isola 2020, section 4.1.

    Args:
        x: (N, D), N > 1; scaled to unit length here.

    Returns:
        from 0 (all in one point) down to about -2 t (evenly over a sphere of many dimensions).
    """
    unit = _unit(x)
    squared = 2 - 2 * (unit @ unit.T)[np.triu_indices(len(unit), 1)]  # (N (N - 1) / 2,)
    return float(np.log(np.exp(-t * squared).mean()))


def _unit(features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Scale rows of (N, D) to unit length; rows of zeros stay zero."""
    x = np.asarray(features, np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


@dataclass(frozen=True)
class Verdict:
    """The meaning of the numbers, in words."""

    level: Literal["good", "watch", "bad", "none"]
    words: str
    advice: str = ""
    """What to try first."""


def judge(observations: Sequence[Mapping[str, Any]]) -> Verdict:
    """Return a verdict on whether the newest observation shows a collapse.

    Args:
        observations: records of metrics.jsonl with `effective_rank`, `rank_limit`, `feature_deviation`; oldest first.
            With a small `step` there is no good verdict yet, and none at all for an untrained network.
    """
    seen = [record for record in observations if "effective_rank" in record]
    if not seen:
        return Verdict("none", "Not measured: this run has no measurements of its features.")
    rank, limit = float(seen[-1]["effective_rank"]), float(seen[-1].get("rank_limit", 0))
    spread = float(seen[-1]["feature_deviation"])
    best = max(float(record["effective_rank"]) for record in seen)
    of = f" of at most {limit:,.0f}" if limit else ""
    numbers = f"effective rank {rank:,.1f}{of}, feature deviation {spread:.2f}"
    step = seen[-1].get("step", EARLY)
    if step == 0:
        return Verdict("none", f"Too early to say: nothing is trained yet ({numbers}).")
    if spread < STILL:
        words = f"Collapsed: almost the same features for all images ({numbers})."
        return Verdict("bad", words, "Try a lower --lr first, then longer --warmup-epochs.")
    if rank < FEW and limit > FEW:
        words = f"Dimensional collapse: the features differ along a few directions only ({numbers})."
        return Verdict(
            "bad", words, "This is normal early in a run. Later, try a lower --lr first, then a higher --lambd."
        )
    if rank < SHRUNK * best:
        words = f"Shrinking: the effective rank was {best:,.1f} before ({numbers})."
        return Verdict("watch", words, "If the kNN accuracy also falls, try a lower --lr first.")
    if step < EARLY:
        return Verdict("none", f"Too early to say, after {plural(step, 'step')}; no sign of a collapse ({numbers}).")
    return Verdict("good", f"No collapse: images spread along many directions ({numbers}).")


def judge_loss(records: Sequence[Mapping[str, Any]]) -> Verdict:
    """Return a verdict on whether the loss diverges: its newest values are far above its best values.

    Args:
        records: records of metrics.jsonl, oldest first.
    """
    losses = np.array([float(record["loss"]) for record in records if record.get("loss") is not None])
    if len(losses) < 2 * WINDOW:
        return Verdict("none", "Too few losses for a trend.")
    averages = np.convolve(losses, np.full(WINDOW, 1 / WINDOW), "valid")  # of WINDOW consecutive losses
    now, best = averages[-1], averages.min()
    if now <= RISEN * best:
        return Verdict("good", f"The loss does not diverge: {now:,.4g} now, {best:,.4g} at its best.")
    words = f"Diverging: the loss is {now:,.4g} on average over {WINDOW} log lines; its best was {best:,.4g}."
    return Verdict("bad", words, "Try a lower --lr first, then longer --warmup-epochs.")
