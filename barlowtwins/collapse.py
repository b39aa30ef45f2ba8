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

__all__ = ["Verdict", "effective_rank", "feature_deviation", "judge", "singular_values"]

STILL = 0.05  # feature deviation below which images are told apart by next to nothing
SHRUNK = 0.5  # an effective rank below this part of its greatest so far is worth a word
FEW = 4.0  # directions: fewer cannot tell many kinds of images apart


def singular_values(features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Singular values of (N, D) features, not centred, greatest first: (min(N, D),).

    From the smaller Gram matrix in float64, so values below 1e-8 of the greatest are rounding.
    """
    x = np.asarray(features, np.float64)  # (N, D)
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    return np.sqrt(np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None))


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
    x = np.asarray(features, np.float64)  # (N, D)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(length > 0, length, 1.0)
    return float(unit.std(axis=0).mean() * np.sqrt(x.shape[1]))


@dataclass(frozen=True)
class Verdict:
    """What the numbers say, for a person."""

    level: Literal["good", "watch", "bad", "none"]
    words: str


def judge(observations: Sequence[Mapping[str, Any]]) -> Verdict:
    """Say in words whether the newest of the observations shows a collapse.

    Args:
        observations: records of metrics.jsonl with `effective_rank`, `rank_limit`, `feature_deviation`; oldest first.
    """
    seen = [record for record in observations if "effective_rank" in record]
    if not seen:
        return Verdict("none", "Not looked at: this run has no observations of its features.")
    rank, limit = float(seen[-1]["effective_rank"]), float(seen[-1].get("rank_limit", 0))
    spread = float(seen[-1]["feature_deviation"])
    best = max(float(record["effective_rank"]) for record in seen)
    of = f" of at most {limit:,.0f}" if limit else ""
    numbers = f"effective rank {rank:,.1f}{of}, feature deviation {spread:.2f}"
    if spread < STILL:
        return Verdict("bad", f"Collapsed: nearly the same features for every image ({numbers}).")
    if rank < FEW and limit > FEW:
        return Verdict("bad", f"Dimensional collapse: the features differ along a few directions only ({numbers}).")
    if rank < SHRUNK * best:
        return Verdict("watch", f"Shrinking: the effective rank was {best:,.1f} before ({numbers}).")
    return Verdict("good", f"No collapse: images spread along many directions ({numbers}).")
