"""Weighted k-nearest-neighbor classification, to evaluate features without training anything on top.

    score[c] = sum over the k nearest bank rows i of class c of exp(cosine_i / T)        (Wu et al. 2018, section 3.4)

These are pure functions of features; the command is in `barlowtwins.evaluate.knn`.
"""

# Q queries, M rows in the bank, D features, K neighbors, C classes

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.metrics.nearest import CHUNK, HELD, Features, chunks, nearest, place_of

__all__ = ["Accuracy", "Labeled", "knn_accuracy", "knn_predict", "votes"]

Labels: TypeAlias = "torch.Tensor | np.ndarray[Any, np.dtype[Any]] | Sequence[int]"


class Labeled(NamedTuple):
    """Features and their classes."""

    features: Features
    """(M, D)."""
    labels: Labels
    """(M,) integers, 0 to C - 1."""


class Accuracy(NamedTuple):
    """Percentage of queries whose class has the highest score, or one of the five highest."""

    top1: float
    top5: float


def votes(similarity: torch.Tensor, classes: torch.Tensor, *, temperature: float, num_classes: int) -> torch.Tensor:
    """Sum the votes exp(similarity / temperature) of the neighbors by class.

    Args:
        similarity: (Q, K), cosine similarities to the neighbors.
        classes: (Q, K) int64, classes of the neighbors, 0 to num_classes - 1.
        temperature: > 0; small values do not overflow.
        num_classes: C.

    Returns:
        (Q, C) float32; each row sums to 1, and a class without neighbors gets exactly 0.

    Raises:
        ConfigError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ConfigError(f"the temperature is {temperature}; it must be > 0 (usually 0.07)")
    weights = torch.softmax(
        similarity / temperature, dim=1
    )  # (Q, K); a common factor per row does not change the order
    scores = torch.zeros(len(similarity), num_classes, device=similarity.device)
    return scores.scatter_add_(1, classes, weights)  # (Q, C)


@torch.no_grad()
def knn_predict(
    bank: Features,
    labels: Labels,
    queries: Features,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk: int = CHUNK,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Score the classes of each query by its k nearest rows in the bank; `argmax(1)` is the prediction.

    Args:
        bank: (M, D) features, normalized or not, possibly memory-mapped. Rows with NaN are ignored.
        labels: (M,) integers, 0 to num_classes - 1.
        queries: (Q, D) features, all finite.
        k: 1 to M.
        temperature: > 0.
        num_classes: C; the highest label + 1 by default.
        chunk: rows per tile of similarities, see `nearest`.
        device: where to compute; the device of the bank by default.

    Returns:
        (Q, C) float32 scores on `device`; each row sums to 1.

    Raises:
        ConfigError: `k` exceeds the number of usable rows, or the widths differ.
        DataError: the labels do not fit, or a query is not finite.
    """
    place = place_of(bank, device)
    classes = _class_indices(labels, len(bank), num_classes, "the bank").to(place)
    num_classes = num_classes or int(classes.max()) + 1
    scores = [torch.empty(0, num_classes, device=place)]
    for _, block in chunks(queries, HELD * chunk, place):
        similarity, rows = nearest(bank, block, k, chunk=chunk, device=place)  # (q, K), (q, K)
        scores.append(votes(similarity, classes[rows], temperature=temperature, num_classes=num_classes))
    return torch.cat(scores)  # (Q, C)


@torch.no_grad()
def knn_accuracy(
    bank: Labeled,
    queries: Labeled,
    *,
    k: int | Sequence[int] = (20, 200),
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk: int = CHUNK,
    device: torch.device | str | None = None,
    after_chunk: Callable[[int], object] = lambda queries: None,
) -> dict[int, Accuracy]:
    """Classify the queries and compare with their labels; one search serves all values of `k`.

    Queries with NaN (unreadable images) are not counted. Among classes with equal scores the first one ranks higher. A
    class without votes is never among the first five.

    Args:
        bank: M rows and their labels.
        queries: Q rows and their labels.
        temperature, num_classes, chunk, device: as for `knn_predict`.
        k: one or more numbers of neighbors, each 1 to M.
        after_chunk: called with the number of queries done since the last call.

    Returns:
        The accuracies for each k, in percent.

    Raises:
        ConfigError: a `k` exceeds the number of usable rows, or the widths differ.
        DataError: the labels do not fit, or no query is readable.
    """
    ks = (k,) if isinstance(k, int) else tuple(k)
    place = place_of(bank.features, device)
    classes = _class_indices(bank.labels, len(bank.features), num_classes, "the bank").to(place)
    wanted = _class_indices(queries.labels, len(queries.features), num_classes, "the queries").to(place)
    num_classes = num_classes or int(torch.cat([classes, wanted]).max()) + 1

    counted = 0
    hits = dict.fromkeys(ks, (0, 0))  # first class right, among the first five
    for start, block in chunks(queries.features, HELD * chunk, place):
        readable = block.isfinite().all(1)
        truth = wanted[start : start + len(block)][readable]
        similarity, rows = nearest(
            bank.features, block[readable], max(ks), chunk=chunk, device=place, after_chunk=after_chunk
        )  # (q, max K), nearest first
        counted += len(truth)
        for each in ks:
            voters = classes[rows[:, :each]]
            scores = votes(similarity[:, :each], voters, temperature=temperature, num_classes=num_classes)
            rank = _rank(scores, truth)
            first, five = hits[each]
            hits[each] = first + int((rank < 1).sum()), five + int((rank < 5).sum())
        after_chunk(len(block) - len(truth))
    if not counted:
        raise DataError("there is no readable image to classify; run `barlowtwins check` to find out why")
    return {each: Accuracy(100 * first / counted, 100 * five / counted) for each, (first, five) in hits.items()}


def _rank(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return (Q,), the number of classes ranked above the true one; C if it has no votes."""
    num_classes = scores.shape[1]
    own = scores.gather(1, truth[:, None])  # (Q, 1)
    lower = torch.arange(num_classes, device=scores.device) < truth[:, None]  # (Q, C)
    before = (scores > own) | ((scores == own) & lower)
    return torch.where(own[:, 0] > 0, before.sum(1), num_classes)


def _class_indices(labels: Labels, rows: int, num_classes: int | None, whose: str) -> torch.Tensor:
    """Return `labels` as (rows,) int64, checked."""
    given = labels if isinstance(labels, torch.Tensor) else torch.from_numpy(_numbers(labels, whose))
    if given.shape != (rows,):
        raise DataError(f"{whose}: {rows} rows but labels of shape {tuple(given.shape)}; give one label per row")
    if rows == 0:
        raise ConfigError(f"{whose}: no rows; give one or more")
    odd = given if given.is_complex() else given[~(given.isfinite() & (given == given.trunc()))]
    if len(odd):
        raise DataError(f"{whose}: label {odd[0].item()} is not a whole number; number the classes 0, 1, 2, ...")
    classes = given.long()
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        most = "0 and up" if num_classes is None else f"0 to {num_classes - 1}"
        raise DataError(f"{whose}: labels run from {low} to {high}; they must be {most} (-1 often means unlabeled)")
    return classes


def _numbers(labels: Labels, whose: str) -> np.ndarray[Any, np.dtype[Any]]:
    """Return `labels` as an array that torch can take."""
    array = np.asarray(labels)
    if array.dtype.kind not in "biufc":
        raise DataError(f"{whose}: labels have dtype {array.dtype}; number the classes 0, 1, 2, ...")
    return array.astype(np.float64) if array.dtype.kind == "f" else array.copy()
