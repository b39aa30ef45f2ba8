"""Has the representation collapsed? Two numbers of the features of some images, and what they mean in words.

Complete collapse: every image has the same features, so none deviates. Dimensional collapse: features differ, but along
few directions only. The loss does not always show either; these two numbers do.
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

STILL = 0.05  # feature deviation below which images are told apart by next to nothing
SHRUNK = 0.5  # an effective rank below this part of its greatest so far is worth a word
FEW = 4.0  # directions: fewer cannot tell many kinds of images apart
EARLY = 100  # steps before which a good verdict says little
WINDOW = 5  # logged losses that are averaged: single ones jump
RISEN = 1.5  # a loss above this many times its best so far diverges


def singular_values(features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Singular values of (N, D) features, not centred, greatest first: (min(N, D),).

    From the smaller Gram matrix in float64, so values below 1e-8 of the greatest are rounding.
    """
    x = np.asarray(features, np.float64)  # (N, D)
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    values: npt.NDArray[np.float64] = np.sqrt(np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None))
    return values


def effective_rank(features: npt.ArrayLike, eps: float = 1e-7) -> float:
    """RankMe (Garrido et al. 2023, equation 1): exp of the entropy of the normalised singular values, p = s / sum(s).

    Args:
        features: (N, D), finite.
        eps: keeps the logarithm of zero away.

    Returns:
        from 1 (all rows are multiples of one) to min(N, D) (every direction is used alike).
    """
    s = singular_values(features)
    total = s.sum()
    if total <= 0:
        return 1.0
    p = s / total
    return float(np.exp(-(p * np.log(p + eps)).sum()))


def feature_deviation(features: npt.ArrayLike) -> float:
    """How far images spread: sqrt(D) times the mean, over features, of the standard deviation of unit-length rows.

    Chen & He 2021 (SimSiam), figure 2, times sqrt(D).

    Returns:
        0 where all rows point the same way; 1 where they point everywhere alike.
    """
    unit = _unit(features)  # (N, D)
    return float(unit.std(axis=0).mean() * np.sqrt(unit.shape[1]))


def alignment(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """How near the two views of an image are: the mean of |x - y|^2 over pairs of unit-length rows.

    Wang & Isola 2020, section 4.1, with exponent 2.

    Args:
        x, y: (N, D), row by row the two views.

    Returns:
        from 0 (the views agree) to 4; 2 for pairs that have nothing to do with each other.
    """
    return float(np.square(_unit(x) - _unit(y)).sum(axis=1).mean())


def uniformity(x: npt.ArrayLike, t: float = 2.0) -> float:
    """How evenly images lie on the sphere: the log of the mean of exp(-t |x_i - x_j|^2) over pairs.

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
    """Rows of (N, D) scaled to unit length; rows of zeros stay."""
    x = np.asarray(features, np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


@dataclass(frozen=True)
class Verdict:
    """What the numbers say, for a person."""

    level: Literal["good", "watch", "bad", "none"]
    words: str
    advice: str = ""
    """What to try first."""


def judge(observations: Sequence[Mapping[str, Any]]) -> Verdict:
    """Say in words whether the newest of the observations shows a collapse.

    Args:
        observations: records of metrics.jsonl with `effective_rank`, `rank_limit`, `feature_deviation`; oldest first.
            With a `step` that is small nothing good is said yet, and nothing at all of an untrained network.
    """
    seen = [record for record in observations if "effective_rank" in record]
    if not seen:
        return Verdict("none", "Not looked at: this run has no observations of its features.")
    rank, limit = float(seen[-1]["effective_rank"]), float(seen[-1].get("rank_limit", 0))
    spread = float(seen[-1]["feature_deviation"])
    best = max(float(record["effective_rank"]) for record in seen)
    of = f" of at most {limit:,.0f}" if limit else ""
    numbers = f"effective rank {rank:,.1f}{of}, feature deviation {spread:.2f}"
    step = seen[-1].get("step", EARLY)
    if step == 0:
        return Verdict("none", f"Too early to say: nothing is trained yet ({numbers}).")
    if spread < STILL:
        words = f"Collapsed: nearly the same features for every image ({numbers})."
        return Verdict("bad", words, "Try a lower --lr first, then longer --warmup-epochs.")
    if rank < FEW and limit > FEW:
        words = f"Dimensional collapse: the features differ along a few directions only ({numbers})."
        return Verdict("bad", words, "Early in a run this passes; else try a lower --lr first, then a higher --lambd.")
    if rank < SHRUNK * best:
        words = f"Shrinking: the effective rank was {best:,.1f} before ({numbers})."
        return Verdict("watch", words, "If the kNN falls, too, try a lower --lr first.")
    if step < EARLY:
        return Verdict("none", f"Too early to say, after {plural(step, 'step')}; no sign of a collapse ({numbers}).")
    return Verdict("good", f"No collapse: images spread along many directions ({numbers}).")


def judge_loss(records: Sequence[Mapping[str, Any]]) -> Verdict:
    """Say in words whether the loss diverges: its newest values stand far above its best ones.

    Args:
        records: of metrics.jsonl, oldest first.
    """
    losses = np.array([float(record["loss"]) for record in records if record.get("loss") is not None])
    if len(losses) < 2 * WINDOW:
        return Verdict("none", "Too few losses to see a trend.")
    averages = np.convolve(losses, np.full(WINDOW, 1 / WINDOW), "valid")  # of WINDOW in a row
    now, best = averages[-1], averages.min()
    if now <= RISEN * best:
        return Verdict("good", f"The loss does not diverge: {now:,.4g}, at its best {best:,.4g}.")
    words = (
        f"Diverging: the loss is {now:,.4g} on average over {WINDOW} lines of the log, and was {best:,.4g} at its best."
    )
    return Verdict("bad", words, "Try a lower --lr first, then longer --warmup-epochs.")
