"""Choose labeled images: balanced fractions, n per class, and a part set aside, each a function of labels and a seed.

All follow from one number per image: its place among the images of its class, in a random order.
"""

# N images, K classes

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import DataError

__all__ = ["balanced_draw", "few_shot", "set_aside"]

ClassNumbers: TypeAlias = npt.NDArray[np.int64]
Indices: TypeAlias = npt.NDArray[np.int64]


def balanced_draw(labels: ClassNumbers, count: int, *, seed: int = 0) -> Indices:
    """Draw `count` images, as many of each class as the classes have.

    Every class is drawn from before any is drawn from again, so numbers differ by one at most until a class runs out.
    A smaller draw of the same seed is a part of a larger one.

    Args:
        labels: (N,) classes from 0.
        count: 1 to N; to have each class, as many as there are classes or more.
        seed: of the draw.

    Returns:
        (count,) indices, sorted.
    """
    place, order = _places(labels, seed)
    drawn = np.lexsort((order, place))[:count]  # by place in the class, then in the random order
    return np.sort(drawn)


def few_shot(labels: ClassNumbers, shots: int, *, seed: int = 0) -> Indices:
    """Draw `shots` images of each class, (K * shots,) indices, sorted.

    Raises:
        DataError: a class has fewer.
    """
    counts = np.bincount(labels)
    if scarce := np.flatnonzero((counts > 0) & (counts < shots)).tolist():
        raise DataError(
            f"{shots} images per class are needed, but class {scarce[0]} has {counts[scarce[0]]}; use fewer shots"
        )
    place, _ = _places(labels, seed)
    return np.flatnonzero(place < shots)


def set_aside(labels: ClassNumbers, fraction: float, *, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Set a fraction of each class aside, rounded down: a class of one image keeps it.

    Args:
        labels: (N,) classes from 0.
        fraction: 0 to 1.
        seed: of the draw.

    Returns:
        (N,), true where the image is set aside.
    """
    place, _ = _places(labels, seed)
    return place < np.floor(np.bincount(labels) * fraction)[labels]


def _places(labels: ClassNumbers, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """In a random order: each image's place among those of its class, and among all; (N,) both."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]  # class after class, each in the random order
    counts = np.bincount(labels)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # where in `by_class` the class begins
    place, order = np.empty_like(shuffled), np.empty_like(shuffled)
    place[by_class] = np.arange(len(labels)) - first
    order[shuffled] = np.arange(len(labels))
    return place, order
