"""Few-shot accuracy: with only a few labeled images per class."""

# N images, n of each class drawn

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from barlowtwins.evaluate.draws import few_shot

__all__ = ["FewShot", "few_shot_accuracy"]


@dataclass(frozen=True)
class FewShot:
    """Accuracies over several draws of the same number of labeled images per class, in percent."""

    shots: int
    """Labeled images of each class."""
    mean: float
    deviation: float
    """Standard deviation of one draw (n - 1 in the denominator); 0 for a single one."""
    accuracies: tuple[float, ...]
    """Of each draw."""


def few_shot_accuracy(
    accuracy_of: Callable[[npt.NDArray[np.int64]], float],
    labels: npt.NDArray[np.int64],
    *,
    shots: int,
    tries: int = 5,
    seed: int = 0,
) -> FewShot:
    """Learn from `shots` images of each class, for `tries` draws of them.

    Args:
        accuracy_of: learns from the images with these indices and gives the percentage of held-out images it gets
            right.
        labels: (N,) classes of the images to draw from.
        shots: n, images of each class.
        tries: draws, of seeds `seed`, `seed` + 1, ...
        seed: of the first draw.

    Raises:
        DataError: a class has fewer images.
    """
    accuracies = tuple(accuracy_of(few_shot(labels, shots, seed=seed + attempt)) for attempt in range(tries))
    deviation = statistics.stdev(accuracies) if tries > 1 else 0.0
    return FewShot(shots, statistics.fmean(accuracies), deviation, accuracies)
