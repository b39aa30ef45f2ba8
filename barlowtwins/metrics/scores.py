"""How good predictions are: top-1 with its confidence interval, top-5, each class, and what is taken for what."""

# n images of a batch, K classes

from __future__ import annotations

import math
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

CONFUSIONS = 3  # that a summary names


@dataclass(frozen=True, eq=False)
class Scores:
    """What a classifier gets right on labelled images; percentages are of the readable ones."""

    images: int
    """That were classified."""
    unreadable: int
    """That could not be read, and are not counted."""
    top1: float
    """Percent whose class is the first."""
    interval: tuple[float, float]
    """95 % confidence interval of `top1` (Wilson), in percent."""
    top5: float | None
    """Percent whose class is among the first five; None with five classes or fewer, where it says nothing."""
    per_class: dict[str, float | None]
    """Percent right of each class's images; None for a class without any."""
    confusion: npt.NDArray[np.int64]
    """(K, K): row k counts what the images of class k are taken for."""

    @property
    def confusions(self) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: class, taken for, how often."""
        wrong = self.confusion * (1 - np.eye(len(self.confusion), dtype=np.int64))
        rows, columns = np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS], wrong.shape)
        names = list(self.per_class)
        found = zip(rows.tolist(), columns.tolist(), strict=True)
        return [(names[row], names[column], int(wrong[row, column])) for row, column in found if wrong[row, column]]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return {
            "top1": self.top1,
            "top1_interval": list(self.interval),
            "top5": self.top5,
            "images": self.images,
            "unreadable": self.unreadable,
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
        }

    def summary(self) -> str:
        """What a person is told."""
        low, high = self.interval
        lines = [f"top-1 {self.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}) of {plural(self.images, 'image')}"]
        if self.top5 is not None:
            lines[0] += f", top-5 {self.top5:.2f} %"
        if self.unreadable:
            lines.append(f"left out: {plural(self.unreadable, 'image')} that could not be read")
        known = {name: value for name, value in self.per_class.items() if value is not None}
        worst = sorted(known, key=lambda name: known[name])[:CONFUSIONS]
        lines.append("hardest classes: " + ", ".join(f"{name} {known[name]:.1f} %" for name in worst))
        if self.confusions:
            mistakes = (f"{name} taken for {other} ({count})" for name, other, count in self.confusions)
            lines.append("most frequent mistakes: " + ", ".join(mistakes))
        return "\n".join(lines)


class Tally:
    """Counts predictions batch by batch; its two tensors are sums, so tallies of several processes add up.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.others = torch.zeros(2, dtype=torch.int64)  # right within the first five; unreadable

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (n, K); of equal ones the first counts as the higher. A row that is not finite is an image that
                could not be read.
            labels: (n,) int64, 0 to K - 1.
        """
        logits, labels = logits.detach().cpu(), labels.cpu()
        readable = logits.isfinite().all(1)
        self.others[1] += int((~readable).sum())
        logits, labels = logits[readable], labels[readable]
        ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, :5]  # (n, <= 5)
        self.confusion.index_put_((labels, ranked[:, 0]), torch.ones_like(labels), accumulate=True)
        self.others[0] += int((ranked == labels[:, None]).any(1).sum())

    def scores(self, classes: Sequence[str]) -> Scores:
        """What was counted.

        Args:
            classes: K names.

        Raises:
            DataError: no readable image was counted.
        """
        images = int(self.confusion.sum())
        if not images:
            raise DataError("there is no readable image to classify; `barlowtwins check` says why")
        right, each = self.confusion.diagonal(), self.confusion.sum(1)
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
            confusion=self.confusion.numpy().copy(),
        )


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927), in percent: unlike p +- 2 s it stays within 0 to 100.

    Args:
        right: 0 to `count`.
        count: 1 or more.
    """
    z = 1.959963984540054  # 97.5 % of a normal distribution lie below
    p, shrink = right / count, 1 + z**2 / count
    middle = (p + z**2 / (2 * count)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
