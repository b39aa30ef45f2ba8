"""The kNN protocol: classify held-out images by their nearest neighbors among the training images."""

# M rows in the bank, K neighbors

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from barlowtwins.config import KNNConfig
from barlowtwins.core.distributed import World, open_world
from barlowtwins.core.printing import plural, table
from barlowtwins.core.progress import Progress, say
from barlowtwins.evaluate.feature_pair import LabeledFeatures, plan_feature_pair
from barlowtwins.evaluate.fewshot import FewShot, few_shot_accuracy
from barlowtwins.metrics.knn import Accuracy, Labeled, knn_accuracy
from barlowtwins.metrics.nearest import CHUNK, Features, chunks
from barlowtwins.runs.job_folder import open_job, write_results

__all__ = ["KNNResult", "evaluate_knn"]

DEFAULT_K = (20, 200)


@dataclass(frozen=True)
class KNNResult:
    """Accuracy of classifying held-out images by their nearest neighbors."""

    accuracy: dict[int, float]
    """Percent right, for each number of neighbors."""
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
    """Few-shot: images per class in the bank, with the first of the numbers of neighbors, or as many as there are."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    def summary(self) -> str:
        """Return a summary in words."""
        unreadable = f"; {self.unreadable:,} could not be read" if self.unreadable else ""
        rows = [[str(k), f"{self.accuracy[k]:.2f} %", f"{self.top5[k]:.2f} %"] for k in self.accuracy]
        few = [
            f"{plural(each.shots, 'image')} per class: {each.mean:.2f} +- {each.deviation:.2f} % "
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
    """Classify the images of `val` by their neighbors in `train`; images are embedded first.

    Features of images are held in memory, 8 KB an image for a ResNet-50; for more than fit, embed both first and give
    the two EMB folders. With `out`, a stopped call resumes, and processes of `torchrun` share the embedding.

    Raises:
        ConfigError: no `val`, more neighbors than images, features of two different networks, or several
            processes without `out`.
        DataError: no labels, a single class, or classes in `val` that are not in `train`.
        WeightsError: the weights cannot be found or loaded.
        OutputError: `out` belongs to another evaluation, or cannot be written.
    """
    started = time.monotonic()
    with open_world(config.device) as world:  # first: fail early if the device is missing
        return _evaluate(config, world, started)


def _evaluate(config: KNNConfig, world: World, started: float) -> KNNResult:
    """Share the embedding among the processes; one of them classifies, and all get its result."""
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
    bank: LabeledFeatures, queries: LabeledFeatures, config: KNNConfig, device: torch.device, started: float
) -> KNNResult:
    """Classify the queries by the bank, and by smaller banks for few-shot."""
    ks = config.k or _fitting(DEFAULT_K, len(bank.labels) - bank.unreadable)

    def accuracies(k: tuple[int, ...], bar: Progress, rows: npt.NDArray[np.int64] | None = None) -> dict[int, Accuracy]:
        """By a bank of all images, or of some."""
        return knn_accuracy(
            Labeled(bank.features, bank.labels) if rows is None else Labeled(bank.features[rows], bank.labels[rows]),
            Labeled(queries.features, queries.labels),
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
    """Numbers of neighbors, none above the number of images."""
    fitting = tuple(dict.fromkeys(max(1, min(k, images)) for k in ks))
    if fitting != tuple(ks):
        names = [" and ".join(map(str, numbers)) for numbers in (fitting, ks)]
        say(f"k is {names[0]} instead of {names[1]}: the bank has {images} images")
    return fitting


def _readable_rows(features: Features) -> npt.NDArray[np.int64]:
    """The rows (m,) without NaN; of a memory-mapped array a block at a time."""
    finite = [block.isfinite().all(1) for _, block in chunks(features, CHUNK, torch.device("cpu"))]
    return np.flatnonzero(torch.cat(finite).numpy())
