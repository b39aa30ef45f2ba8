"""Settings of the commands that draw: `barlowtwins report`, `map` and `augment`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from barlowtwins.config.flags import Positional
from barlowtwins.config.rules import Checked, Count, DataPath, FilePath, Natural, Range, require, shared_last
from barlowtwins.config.shared import NamedData, Reading, Seeded

__all__ = ["AugmentConfig", "MapConfig", "ReportConfig"]


@dataclass(frozen=True)
class ReportConfig(Checked):
    """Draw a run as one HTML page, RUN/report.html; pretraining does so by itself after each epoch."""

    run: Positional[FilePath]
    """A RUN folder; its training may still be under way."""


@shared_last
@dataclass(frozen=True)
class MapConfig(Seeded, NamedData, Reading):
    """Draw an EMB folder as a map to explore: one HTML page that needs no network."""

    embeddings: Positional[FilePath]
    """An EMB folder made by `barlowtwins embed`."""
    out: FilePath
    """The HTML file."""
    method: Literal["pca", "tsne", "umap"] = "pca"
    """How features become two coordinates: pca is there at once; tsne and umap take minutes and show clusters better
    (extra `map`)."""
    colour: Literal["auto", "label", "cluster"] = "auto"
    """What points are coloured by: labels where there are any, else clusters (k-means)."""
    clusters: Count = 10
    """Number of clusters."""
    neighbours: Natural = 8
    """Nearest neighbors that a click shows; 0: none. Finding them takes most of the time of large maps."""
    thumbnails: Annotated[float, Range(0, 500)] = 24.0
    """Megabytes of thumbnails at most; images beyond have none. 0: no thumbnails."""
    export: FilePath | None = None
    """A Parquet file for other tools, too: row, path, label, cluster, x, y and neighbors of each image."""
    data: FilePath | None = None
    """The images of the rows, where they may not be opened by the folder's word alone: behind a URL, or outside the
    working folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seed < 2**32, f"seed must be from 0 to {2**32 - 1}, got {self.seed}", "seed")


@shared_last
@dataclass(frozen=True)
class AugmentConfig(Seeded, NamedData):
    """Draw images and their augmented views side by side, with what was drawn for each."""

    data: Positional[DataPath]
    """A folder of images, a text file of paths, tar shards, or a data-set name."""
    out: FilePath
    """The picture: a PNG, JPEG or WebP file."""
    augmentation: str = "auto"
    """imagenet, small, grey, shapes or fashion-mnist; auto picks the one that pretraining would."""
    images: Annotated[int, Range(1, 100)] = 6
    """Images to show, evenly spread over the data."""
    pairs: Annotated[int, Range(1, 100)] = 2
    """Pairs of views of each, one per epoch."""
    image_size: Count | None = None
    """Side of the views in pixels; by default, the augmentation's own."""
    epoch: Natural = 0
    """The first epoch whose views are shown."""
    split: str = "train"
    """The split of a named data set: train or test."""
