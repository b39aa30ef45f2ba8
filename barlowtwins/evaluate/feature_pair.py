"""Features with labels for training and for validation, from images (which are embedded) or from EMB folders."""

# N images, D features

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from barlowtwins.config import KNNConfig
from barlowtwins.core.device import resolve_workers
from barlowtwins.core.distributed import World
from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.core.progress import say
from barlowtwins.data.describe import describe
from barlowtwins.data.open import has_split, open_source
from barlowtwins.data.sources import Source
from barlowtwins.embedding.embedder import Embedder
from barlowtwins.embedding.embeddings import is_embeddings, open_embeddings
from barlowtwins.evaluate.baselines import open_embedder
from barlowtwins.evaluate.features import extract_features
from barlowtwins.evaluate.labeled import labels_of, labels_within

__all__ = ["LabeledFeatures", "PlannedPair", "open_embedded_pair", "plan_feature_pair"]


class LabeledFeatures(NamedTuple):
    """Features, each with a class."""

    name: str
    """Of the images or the EMB folder."""
    features: npt.NDArray[np.float32]
    """(N, D); NaN where an image could not be read. Memory-mapped if from an EMB folder."""
    labels: npt.NDArray[np.int64]
    """(N,) numbers into `classes`."""
    classes: tuple[str, ...]
    unreadable: int
    weights: str
    """Name of what made the features."""
    network: tuple[str, dict[str, Any]]
    """The digest of the weights and the preprocessing: features of different ones cannot be compared."""


class PlannedPair(NamedTuple):
    """Training and validation data, opened and checked but not embedded yet."""

    config: KNNConfig
    parts: dict[str, str]
    """Of "train" and "test", what the configuration says: images or an EMB folder."""
    sources: dict[str, Source]
    """Of the parts that are images."""
    embedder: Embedder | None
    """For the images, if there are any."""

    def fingerprints(self) -> dict[str, list[str]]:
        """For each part the digests of the images and of the network that makes features of them."""
        return {split: list(self._fingerprint(split, data)) for split, data in self.parts.items()}

    def _fingerprint(self, split: str, data: str) -> tuple[str, str]:
        if self.embedder and split in self.sources:
            return self.sources[split].fingerprint(), self.embedder.sha256
        meta = open_embeddings(data).meta
        return meta["data_fingerprint"], meta["weights_sha256"]

    def features(self, folder: Path | None, world: World) -> tuple[LabeledFeatures, LabeledFeatures] | None:
        """Embed what is not embedded yet, shared among the processes.

        Args:
            folder: where features are kept, for a stopped call to resume from; None keeps nothing.
            world: the processes, which share the work by way of `folder`.

        Returns:
            Training and validation features, both labeled by the training classes; None on processes that do not
            write.

        Raises:
            StoppedEarly: a stop signal; with a folder the same call resumes.
            ConfigError: features of two different networks.
            DataError: rows without labels, a single class, or validation classes that are not in the training data.
        """
        for source in self.sources.values() if world.writes else ():
            say(describe(source))
        made = {
            split: self._extract(source, folder and folder / "features" / split, world)
            for split, source in self.sources.items()
        }
        if not world.writes:
            return None
        learned, judged = (made.get(split) or _read(data) for split, data in self.parts.items())
        return _matched(learned, judged)

    def _extract(self, source: Source, folder: Path | None, world: World) -> LabeledFeatures | None:
        assert self.embedder is not None  # there are images
        workers = resolve_workers(self.config.workers)
        size = self.config.batch_size
        features = extract_features(source, self.embedder, folder, world=world, batch_size=size, workers=workers)
        if features is None:
            return None
        network = (self.embedder.sha256, self.embedder.preprocessing.to_dict())
        unreadable = int((~np.isfinite(features).all(axis=1)).sum())
        return LabeledFeatures(
            source.name, features, labels_of(source), source.classes, unreadable, self.embedder.name, network
        )


def plan_feature_pair(config: KNNConfig, device: torch.device) -> PlannedPair:
    """Open `config.train` and `config.val`, and check them before anything is embedded on `device`.

    Raises:
        ConfigError: no `val`, or more neighbors than images.
        DataError: no labels, or classes in `val` that are not in `train`.
        WeightsError: the weights cannot be found or loaded.
    """
    if config.val is None and not has_split(config.train, "test"):
        raise ConfigError(f"{config.train} has no test split of its own; pass validation images with --val")
    parts = {"train": config.train, "test": config.val or config.train}
    sources = {
        split: open_source(data, split=split, data_root=config.data_root)
        for split, data in parts.items()
        if not is_embeddings(data)
    }
    _check(sources, max(config.k, default=1))
    embedder = None
    if sources:
        embedder = open_embedder(
            config.weights, list(sources.values()), device=device, precision=config.precision, seed=config.seed
        )
    return PlannedPair(config, parts, sources, embedder)


def open_embedded_pair(train: str, val: str | None) -> tuple[LabeledFeatures, LabeledFeatures]:
    """Open two EMB folders, for training and validation, both labeled by the training classes.

    Raises:
        ConfigError: no `val`, or features of two different networks.
        DataError: `val` is not an EMB folder, rows have no labels, a single class, or classes that are not in `train`.
    """
    if val is None:
        raise ConfigError(f"{train} holds features; pass another EMB folder with --val")
    return _matched(_read(train), _read(val))


def _matched(learned: LabeledFeatures, judged: LabeledFeatures) -> tuple[LabeledFeatures, LabeledFeatures]:
    """Both by the classes of the first, if they are of one network."""
    if learned.network != judged.network:
        raise ConfigError(
            f"the features of {learned.name} are made by {learned.weights} and those of {judged.name} by "
            f"{judged.weights}, or their preprocessing differs; embed both with the same --weights"
        )
    if len(learned.classes) < 2:
        raise DataError(f"{learned.name} has one class, {learned.classes[0]}: classification needs two or more")
    return learned, judged._replace(labels=labels_within(learned.classes, judged), classes=learned.classes)


def _check(sources: Mapping[str, Source], k: int) -> None:
    """Find what is wrong with the images before they are embedded, which may take long."""
    for source in sources.values():
        labels_of(source)
    learned, judged = sources.get("train"), sources.get("test")
    if learned is not None and k > len(learned):
        raise ConfigError(f"--k {k} is more than the {len(learned)} training images; choose --k up to {len(learned)}")
    if learned is not None and judged is not None:
        labels_within(learned.classes, judged)


def _read(folder: str) -> LabeledFeatures:
    """Of an EMB folder."""
    opened = open_embeddings(folder)
    meta = opened.meta
    classes = tuple(meta["classes"])
    place = {name: number for number, name in enumerate(classes)}
    labels = np.fromiter((place.get(entry.label, -1) for entry in opened.index()), np.int64, meta["rows"])
    if missing := int((labels < 0).sum()):
        raise DataError(
            f"{missing:,} of {len(labels):,} rows of {folder} have no label, which an evaluation needs: embed images "
            "from one folder per class, or a list with one label per line"
        )
    network = (meta["weights_sha256"], meta["preprocessing"])
    return LabeledFeatures(
        str(Path(folder)), opened.features, labels, classes, meta["failed"], meta["weights_name"], network
    )
