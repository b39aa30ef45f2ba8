"""Weighted k-nearest-neighbour classification: how good are features, with nothing trained on top?

    score[c] = sum over the k nearest bank rows i of class c of exp(cosine_i / T)        (Wu et al. 2018, section 3.4)

`knn_predict` and `knn_accuracy` are pure functions of features; `evaluate_knn`, at the end, is the command around them.
"""

# Q queries, M rows in the bank, D features, K neighbours, C classes

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from barlowtwins.config import KNNConfig
from barlowtwins.distributed import World, open_world
from barlowtwins.embedding.nearest import CHUNK, HELD, Features, chunks, nearest, place_of
from barlowtwins.errors import ConfigError, DataError
from barlowtwins.evaluate.feature_pair import LabelledFeatures, plan_feature_pair
from barlowtwins.evaluate.fewshot import FewShot, few_shot_accuracy
from barlowtwins.evaluate.job import open_job, write_results
from barlowtwins.printing import plural, table
from barlowtwins.progress import Progress, say

__all__ = ["Accuracy", "KNNResult", "evaluate_knn", "knn_accuracy", "knn_predict", "votes"]

DEFAULT_K = (20, 200)

Labels: TypeAlias = "torch.Tensor | np.ndarray[Any, np.dtype[Any]] | Sequence[int]"


class Accuracy(NamedTuple):
    """Percent of the queries whose class is the first, or among the first five, by score."""

    top1: float
    top5: float


def votes(similarity: torch.Tensor, classes: torch.Tensor, *, temperature: float, num_classes: int) -> torch.Tensor:
    """Sum the neighbours' votes exp(similarity / temperature) by class.

    Args:
        similarity: (Q, K), cosines to the neighbours.
        classes: (Q, K) int64, the neighbours' classes, 0 to num_classes - 1.
        temperature: > 0; however small, nothing overflows.
        num_classes: C.

    Returns:
        (Q, C) float32; each row sums to 1, and a class without neighbours has exactly 0.

    Raises:
        ConfigError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ConfigError(f"the temperature is {temperature}; it must be > 0 (0.07 is usual)")
    weights = torch.softmax(similarity / temperature, dim=1)  # (Q, K); a common factor in a row changes no order
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
    """Score the classes of each query by its k nearest rows of the bank; `argmax(1)` is the prediction.

    Args:
        bank: (M, D) features; they need not be normalised, and may be memory-mapped. Rows with NaN are left out.
        labels: (M,) integers, 0 to num_classes - 1.
        queries: (Q, D) features, all finite.
        k: 1 to M.
        temperature: > 0.
        num_classes: C; the highest label + 1 unless told.
        chunk: rows of either side in a tile of similarities, see `nearest`.
        device: where to compute; the bank's own unless told.

    Returns:
        (Q, C) float32 scores on `device`; each row sums to 1.

    Raises:
        ConfigError: `k` is more than there are usable rows, or widths differ.
        DataError: labels that do not fit, or a query that is not finite.
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
    bank: Features,
    labels: Labels,
    queries: Features,
    query_labels: Labels,
    *,
    k: int | Sequence[int] = (20, 200),
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk: int = CHUNK,
    device: torch.device | str | None = None,
    after_chunk: Callable[[int], object] = lambda queries: None,
) -> dict[int, Accuracy]:
    """Classify the queries and compare with their labels; neighbours are searched once for all values of `k`.

    A query with a NaN, an image that could not be read, is not counted. Of classes with equal scores the first counts
    as the higher; a class without a vote is never among the five.

    Args:
        bank, labels, queries, temperature, num_classes, chunk, device: as for `knn_predict`.
        query_labels: (Q,) integers, 0 to num_classes - 1.
        k: one or more numbers of neighbours, each 1 to M.
        after_chunk: called with the number of queries that what was just done amounts to.

    Returns:
        For each k the accuracies in percent.

    Raises:
        ConfigError: a `k` is more than there are usable rows, or widths differ.
        DataError: labels that do not fit, or no query left.
    """
    ks = (k,) if isinstance(k, int) else tuple(k)
    place = place_of(bank, device)
    classes = _class_indices(labels, len(bank), num_classes, "the bank").to(place)
    wanted = _class_indices(query_labels, len(queries), num_classes, "the queries").to(place)
    num_classes = num_classes or int(torch.cat([classes, wanted]).max()) + 1

    counted = 0
    hits = dict.fromkeys(ks, (0, 0))  # of the first, of the first five
    for start, block in chunks(queries, HELD * chunk, place):
        readable = block.isfinite().all(1)
        truth = wanted[start : start + len(block)][readable]
        similarity, rows = nearest(
            bank, block[readable], max(ks), chunk=chunk, device=place, after_chunk=after_chunk
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
        raise DataError("there is no readable image to classify; `barlowtwins check` says why")
    return {each: Accuracy(100 * first / counted, 100 * five / counted) for each, (first, five) in hits.items()}


def _rank(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """(Q,): how many classes stand before the true one in the order of scores; all C if it has no vote."""
    num_classes = scores.shape[1]
    own = scores.gather(1, truth[:, None])  # (Q, 1)
    lower = torch.arange(num_classes, device=scores.device) < truth[:, None]  # (Q, C)
    before = (scores > own) | ((scores == own) & lower)
    return torch.where(own[:, 0] > 0, before.sum(1), num_classes)


def _class_indices(labels: Labels, rows: int, num_classes: int | None, whose: str) -> torch.Tensor:
    """`labels` as (rows,) int64, checked."""
    classes = torch.as_tensor(labels).long()
    if classes.shape != (rows,):
        raise DataError(f"{whose}: {rows} rows but labels of shape {tuple(classes.shape)}; give one label a row")
    if rows == 0:
        raise ConfigError(f"{whose}: no rows; give one or more")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        most = "0 and up" if num_classes is None else f"0 to {num_classes - 1}"
        raise DataError(f"{whose}: labels run from {low} to {high}; they must be {most} (-1 often means unlabelled)")
    return classes


# The command --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KNNResult:
    """How often the neighbours of held-out images name their class."""

    accuracy: dict[int, float]
    """Percent right, for each number of neighbours."""
    top5: dict[int, float]
    """Percent whose class is among the five with the highest scores."""
    n_train: int
    """Images in the bank."""
    n_val: int
    """Images that were classified."""
    unreadable: int
    """Images that could not be read, of both; they are not counted."""
    classes: int
    weights: str
    """What made the features."""
    temperature: float
    seconds: float
    few_shot: tuple[FewShot, ...] = ()
    """With only so many images a class in the bank, and the first of the numbers of neighbours, or as many as fit."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)

    def summary(self) -> str:
        """What a person is told."""
        unreadable = f"; {self.unreadable:,} could not be read" if self.unreadable else ""
        rows = [[str(k), f"{self.accuracy[k]:.2f} %", f"{self.top5[k]:.2f} %"] for k in self.accuracy]
        few = [
            f"{plural(each.shots, 'image')} a class: {each.mean:.2f} +- {each.deviation:.2f} % "
            f"({plural(len(each.accuracies), 'draw')})"
            for each in self.few_shot
        ]
        return "\n".join(
            [
                f"{plural(self.n_val, 'image')} among {self.n_train:,} of {self.classes} classes{unreadable}; "
                f"features: {self.weights} ({self.seconds:.1f} s)",
                table(rows, ["k", "kNN top-1", "top-5"]),
                *few,
            ]
        )


def evaluate_knn(config: KNNConfig) -> KNNResult:
    """Classify the images of `val` by their neighbours in `train`; both are embedded first, unless that is done.

    Features of images are held in memory, 8 KB an image for a ResNet-50; for more than fit, embed both first and give
    the two EMB folders. With `out`, a stopped call goes on, and processes of `torchrun` share the embedding.

    Raises:
        ConfigError: no `val`, more neighbours than images, features of two different networks, or several
            processes without `out`.
        DataError: no labels, a single class, or classes in `val` that are not in `train`.
        WeightsError: the weights cannot be had.
        OutputError: `out` belongs to another evaluation, or cannot be written.
    """
    started = time.monotonic()
    with open_world(config.device) as world:  # first of all: without its device nothing can be done
        return _evaluate(config, world, started)


def _evaluate(config: KNNConfig, world: World, started: float) -> KNNResult:
    """The processes share the embedding; one of them classifies, and all get its result."""
    pair = plan_feature_pair(config, world.device)
    # Weights by name, too: of two EMB folders they decide nothing, and are on record as everywhere.
    decisive = ("weights", "k", "temperature", "shots", "tries", "precision", "seed")
    job = {"evaluation": "knn", **{name: getattr(config, name) for name in decisive}, **pair.fingerprints()}
    result = None
    with open_job(config.out, job, overwrite=config.overwrite, world=world) as folder:
        both = pair.features(folder, world)
        if both is not None:
            result = _classify(*both, config, world.device, started)
            if folder:
                write_results(folder, job, result)
        result = world.same(result)
    assert result is not None  # the process that writes has one
    return result


def _classify(
    bank: LabelledFeatures, queries: LabelledFeatures, config: KNNConfig, device: torch.device, started: float
) -> KNNResult:
    """Judge the queries by the bank, and by smaller banks if any are asked for."""
    ks = config.k or _fitting(DEFAULT_K, len(bank.labels) - bank.unreadable)

    def accuracies(k: tuple[int, ...], bar: Progress, rows: npt.NDArray[np.int64] | None = None) -> dict[int, Accuracy]:
        """By a bank of all images, or of some."""
        return knn_accuracy(
            bank.features if rows is None else bank.features[rows],
            bank.labels if rows is None else bank.labels[rows],
            queries.features,
            queries.labels,
            k=k,
            temperature=config.temperature,
            num_classes=len(bank.classes),
            device=device,
            after_chunk=bar.update,
        )

    def few(drawn: npt.NDArray[np.int64]) -> float:
        k = min(ks[0], len(drawn))
        return accuracies((k,), bar, readable[drawn])[k].top1

    with Progress(len(queries.labels) * (1 + config.tries * len(config.shots)), desc="kNN") as bar:
        found = accuracies(ks, bar)
        readable = _readable_rows(bank.features) if config.shots else np.empty(0, np.int64)
        few_shot = tuple(
            few_shot_accuracy(few, bank.labels[readable], shots=shots, tries=config.tries, seed=config.seed)
            for shots in config.shots
        )
    return KNNResult(
        accuracy={k: accuracy.top1 for k, accuracy in found.items()},
        top5={k: accuracy.top5 for k, accuracy in found.items()},
        n_train=len(bank.labels) - bank.unreadable,
        n_val=len(queries.labels) - queries.unreadable,
        unreadable=bank.unreadable + queries.unreadable,
        classes=len(bank.classes),
        weights=bank.weights,
        temperature=config.temperature,
        seconds=time.monotonic() - started,
        few_shot=few_shot,
    )


def _fitting(ks: Sequence[int], images: int) -> tuple[int, ...]:
    """Numbers of neighbours, each as far as there are images."""
    fitting = tuple(dict.fromkeys(max(1, min(k, images)) for k in ks))
    if fitting != tuple(ks):
        names = [" and ".join(map(str, numbers)) for numbers in (fitting, ks)]
        say(f"k is {names[0]} instead of {names[1]}: the bank has {images} images")
    return fitting


def _readable_rows(features: Features) -> npt.NDArray[np.int64]:
    """The rows (m,) without NaN; of a memory-mapped array a block at a time."""
    finite = [block.isfinite().all(1) for _, block in chunks(features, CHUNK, torch.device("cpu"))]
    return np.flatnonzero(torch.cat(finite).numpy())
