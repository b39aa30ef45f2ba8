"""Settings of the commands that draw: `barlowtwins report`, `map` and `augment`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from barlowtwins.config.rules import require

__all__ = ["AugmentConfig", "MapConfig", "ReportConfig"]


@dataclass(frozen=True)
class ReportConfig:
    """Draw a run as one HTML page, RUN/report.html; pretraining does so by itself after each epoch."""

    run: Positional[str]
    """A RUN folder; its training may still be under way."""


@dataclass(frozen=True)
class MapConfig:
    """Draw an EMB folder as a map to explore: one HTML page that needs no network."""

    embeddings: Positional[str]
    """An EMB folder made by `barlowtwins embed`."""
    out: str
    """The HTML file."""
    method: Literal["pca", "tsne", "umap"] = "pca"
    """How features become two coordinates: pca is there at once; tsne and umap take minutes and show clusters better
    (extra `map`)."""
    colour: Literal["auto", "label", "cluster"] = "auto"
    """What points are coloured by: labels where there are any, else clusters (k-means)."""
    clusters: int = 10
    """Number of clusters."""
    neighbours: int = 8
    """Nearest neighbours that a click shows; 0: none. Finding them takes most of the time of large maps."""
    thumbnails: float = 24.0
    """Megabytes of thumbnails at most; images beyond have none. 0: no thumbnails."""
    export: str | None = None
    """A Parquet file for other tools, too: row, path, label, cluster, x, y and neighbours of each image."""
    data_root: str | None = None
    """Where named data sets lie."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told. 0: in the main process."""
    seed: int = 0
    """Seed of clusters, t-SNE and UMAP."""

    def __post_init__(self) -> None:
        require(self.clusters >= 1, f"--clusters is {self.clusters}; it must be 1 or more")
        require(self.neighbours >= 0, f"--neighbours is {self.neighbours}; it must not be negative")
        require(0 <= self.thumbnails <= 500, f"--thumbnails is {self.thumbnails}; it is megabytes from 0 to 500")
        require(self.workers is None or self.workers >= 0, f"--workers is {self.workers}; it must not be negative")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}; it must lie from 0 to 2**32 - 1")


@dataclass(frozen=True)
class AugmentConfig:
    """Draw images and their augmented views side by side, with what was drawn for each."""

    data: Positional[str]
    """A folder of images, a text file of paths, tar shards, or a data-set name."""
    out: str
    """The picture: a PNG, JPEG or WebP file."""
    augmentation: str = "auto"
    """imagenet, small, grey, shapes or fashion-mnist; auto picks the one that pretraining would."""
    images: int = 6
    """Images to show, evenly spread over the data."""
    pairs: int = 2
    """Pairs of views of each, one an epoch."""
    image_size: int | None = None
    """Side of the views in pixels; the augmentation's own unless told."""
    epoch: int = 0
    """The first epoch whose views are shown."""
    split: str = "train"
    """The split of a named data set: train or test."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    seed: int = 0
    """Seed of the views: those of a pretraining run with this seed."""

    def __post_init__(self) -> None:
        for name in ("images", "pairs"):
            value = getattr(self, name)
            require(1 <= value <= 100, f"--{name} is {value}; it must lie from 1 to 100")
        require(self.image_size is None or self.image_size >= 1, f"--image-size is {self.image_size}; it must be >= 1")
        require(self.epoch >= 0, f"--epoch is {self.epoch}; it must not be negative")
        require(0 <= self.seed < 2**63, f"--seed is {self.seed}; it must lie from 0 to 2**63 - 1")
