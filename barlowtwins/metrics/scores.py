"""Scores of predictions: top-1 with a confidence interval, top-5, per class, and the confusion matrix."""

# n images in a batch, K classes

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from barlowtwins.core.errors import DataError
from barlowtwins.core.printing import plural

__all__ = ["Scores", "Tally", "wilson_interval"]

CONFUSIONS = 3  # number that a summary lists
DENSE = 1000  # classes up to which the record has the whole matrix; 6,000 classes would take 300 MB
BLOCK = 1 << 22  # logits to rank at a time


@dataclass(frozen=True, eq=False)
class Scores:
    """Results of a classifier on labeled images; percentages refer to the readable images."""

    images: int
    """Number of classified images."""
    unreadable: int
    """Number of unreadable images, which are not counted."""
    top1: float
    """Percentage of images whose class ranks first."""
    interval: tuple[float, float]
    """95 % confidence interval of `top1` (Wilson), in percent."""
    top5: float | None
    """Percentage of images whose class ranks among the first five; None with five classes or fewer."""
    per_class: dict[str, float | None]
    """Accuracy of each class in percent; None for a class without images."""
    cells: npt.NDArray[np.int64]
    """(M, 3): true class, predicted class, count, for the pairs that occur, sorted."""

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """(K, K): row k counts the predictions for images of class k. Computed on request."""
        matrix = np.zeros((len(self.per_class),) * 2, np.int64)
        matrix[self.cells[:, 0], self.cells[:, 1]] = self.cells[:, 2]
        return matrix

    @property
    def confusions(self) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: true class, predicted class, count."""
        wrong = self.cells[self.cells[:, 0] != self.cells[:, 1]]
        names = list(self.per_class)
        most = wrong[np.argsort(-wrong[:, 2], kind="stable")[:CONFUSIONS]]
        return [(names[row], names[column], count) for row, column, count in most.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; above 1,000 classes the confusion is a list of pairs."""
        dense = len(self.per_class) <= DENSE
        return {
            "top1": self.top1,
            "top1_interval": list(self.interval),
            "top5": self.top5,
            "images": self.images,
            "unreadable": self.unreadable,
            "per_class": self.per_class,
            **({"confusion": self.confusion.tolist()} if dense else {"confusion_pairs": self.cells.tolist()}),
        }

    def summary(self) -> str:
        """Return the scores as text."""
        low, high = self.interval
        lines = [f"top-1 {self.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}) of {plural(self.images, 'image')}"]
        if self.top5 is not None:
            lines[0] += f", top-5 {self.top5:.2f} %"
        if self.unreadable:
            lines.append(f"skipped: {plural(self.unreadable, 'unreadable image')}")
        known = {name: value for name, value in self.per_class.items() if value is not None}
        worst = sorted(known, key=lambda name: known[name])[:CONFUSIONS]
        lines.append("lowest accuracy: " + ", ".join(f"{name} {known[name]:.1f} %" for name in worst))
        if self.confusions:
            mistakes = (f"{name} classified as {other} ({count})" for name, other, count in self.confusions)
            lines.append("most frequent mistakes: " + ", ".join(mistakes))
        return "\n".join(lines)


class Tally:
    """Counts predictions batch by batch, in memory proportional to the pairs of classes that occur.

    Both attributes are sums, so those of several processes can be added.

    Args:
        classes: K.

    Attributes:
        cells: how often class k was taken for class j, by the number k * K + j.
        others: (2,) int64: images whose class is among the first five, and unreadable ones.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.cells = Counter[int]()
        self.others = torch.zeros(2, dtype=torch.int64)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (n, K); among equal ones the first ranks higher. A row that is not finite is an unreadable image.
            labels: (n,) int64, 0 to K - 1.
        """
        rows = max(1, BLOCK // self.classes)
        for some, theirs in zip(logits.detach().split(rows), labels.split(rows), strict=True):
            self._add(some.cpu(), theirs.cpu())

    def _add(self, logits: Tensor, labels: Tensor) -> None:
        readable = logits.isfinite().all(1)
        self.others[1] += int((~readable).sum())
        logits, labels = logits[readable], labels[readable]
        ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, :5]  # (n, <= 5)
        cells, counts = torch.unique(labels * self.classes + ranked[:, 0], return_counts=True)
        self.cells.update(dict(zip(cells.tolist(), counts.tolist(), strict=True)))
        self.others[0] += int((ranked == labels[:, None]).any(1).sum())

    def scores(self, classes: Sequence[str]) -> Scores:
        """Return the scores of all counted batches.

        Args:
            classes: K names.

        Raises:
            DataError: no readable image was counted.
        """
        counted = np.array(sorted(self.cells.items()), np.int64).reshape(-1, 2)  # (M, 2): cell, how often
        cells = np.column_stack([*divmod(counted[:, 0], self.classes), counted[:, 1]])  # (M, 3)
        images = int(cells[:, 2].sum())
        if not images:
            raise DataError("there is no readable image to classify; run `barlowtwins check` to find out why")
        on_diagonal = cells[cells[:, 0] == cells[:, 1]]
        right, each = np.zeros((2, self.classes), np.int64)
        right[on_diagonal[:, 0]] = on_diagonal[:, 2]
        np.add.at(each, cells[:, 0], cells[:, 2])
        per_class = {
            name: 100 * hits / count if count else None
            for name, hits, count in zip(classes, right.tolist(), each.tolist(), strict=True)
        }
        within_five, unreadable = self.others.tolist()
        return Scores(
            images=images,
            unreadable=unreadable,
            top1=100 * int(right.sum()) / images,
            interval=wilson_interval(int(right.sum()), images),
            top5=100 * within_five / images if len(classes) > 5 else None,
            per_class=per_class,
            cells=cells,
        )


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion in percent; unlike p +- 2 s it stays within 0 to 100.

    Args:
        right: 0 to `count`.
        count: 1 or more.
    """
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    p, shrink = right / count, 1 + z**2 / count
    middle = (p + z**2 / (2 * count)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
