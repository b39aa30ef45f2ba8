"""Nearest neighbors of an image: the nearest rows of an EMB folder by cosine, read from disk in chunks."""

from __future__ import annotations

import itertools
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from barlowtwins.config import NeighborsConfig
from barlowtwins.core.errors import ConfigError, DataError, UsageError, WeightsError
from barlowtwins.core.printing import table
from barlowtwins.core.readers import below
from barlowtwins.data.images import Unreadable, read_image
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.embedding.embeddings import OK, Embeddings, open_embeddings
from barlowtwins.metrics.nearest import nearest
from barlowtwins.reports.thumbnails import images_of
from barlowtwins.reports.tiles import Tile, draw_sheet, require_picture, write_sheet

__all__ = ["Neighbor", "NeighborsResult", "Neighbour", "NeighboursResult", "neighbors", "neighbours"]

ACROSS = 6  # images per row of a sheet


@dataclass(frozen=True)
class Neighbor:
    """A row near the query."""

    row: int
    path: str
    label: str
    """Class name; empty if unlabeled."""
    cosine: float


@dataclass(frozen=True)
class NeighborsResult:
    """The rows nearest to a query, nearest first."""

    query: str
    """The image file, or the path of the row."""
    neighbours: tuple[Neighbor, ...]
    label: str = ""
    """Class name of the query if it is a labeled row; else empty."""
    sheet: str | None = None
    """The image file that was written."""

    @property
    def neighbors(self) -> tuple[Neighbor, ...]:
        """The rows; `neighbours` is their name in JSON."""
        return self.neighbours

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """Return the result as text."""
        rows = [[f"{found.cosine:.4f}", str(found.row), found.path, found.label] for found in self.neighbors]
        whose = f"{self.query} ({self.label})" if self.label else self.query
        picture = f"\nimage sheet: {self.sheet}" if self.sheet else ""
        return f"nearest to {whose}:\n{table(rows, ['cosine', 'row', 'path', 'label'])}{picture}"


def neighbors(config: NeighborsConfig) -> NeighborsResult:
    """Find the rows nearest to an image file, which is embedded like the rows, or to a row, which is excluded.

    Returns fewer than `k` rows if there are fewer readable images.

    Raises:
        DataError: the folder is not an EMB folder, or an image cannot be read.
        UsageError: the row does not exist.
        OutputError: the sheet cannot be written.
        WeightsError: the weights of the rows have moved or changed.
    """
    if config.sheet:
        require_picture(config.sheet)
    opened = open_embeddings(config.embeddings)
    usable = opened.meta["rows"] - opened.meta["failed"]
    if config.query.isdecimal() and not Path(config.query).exists():
        own = int(config.query)
        query, name, label = _row(opened, own)
        wanted = min(config.k + 1, usable)  # one more, since the row finds itself
    else:
        own = -1
        query, name, label = _embed(opened, config.query, config.weights), config.query, _label_of(opened, config.query)
        wanted = min(config.k, usable)
    if not wanted:
        raise DataError(f"no image in {config.embeddings} could be read; see its index.csv for the reason")
    similarity, rows = nearest(opened.features, query[None], wanted)
    found = dict(zip(rows[0].tolist(), similarity[0].tolist(), strict=True))  # nearest first
    found.pop(own, None)
    nearest_rows = list(found)[: config.k]
    entries = {entry.row: entry for entry in opened.index() if entry.row in found}
    listed = tuple(Neighbor(row, entries[row].path, entries[row].label, found[row]) for row in nearest_rows)
    result = NeighborsResult(name, listed, label, config.sheet)
    if config.sheet:
        write_sheet(config.sheet, _sheet(result, opened, own, config))
    return result


# The names before.
Neighbour = Neighbor
NeighboursResult = NeighborsResult
neighbours = neighbors


def _sheet(result: NeighborsResult, opened: Embeddings, own: int, config: NeighborsConfig) -> Image.Image:
    """The query and its neighbors as pictures, with cosine, label and path under each.

    Raises:
        DataError: the images cannot be found.
    """
    source = images_of(opened, config.data_root, config.data)
    if source is None:
        raise DataError(
            f"cannot find the images of {opened.meta['data']} for --sheet; name them as --data or --data-root"
        )
    query = source.read(own) if own >= 0 else read_image(config.query)
    tiles = [
        Tile(_picture(query), _words("query", result.label, result.query), marked=True),
        *(
            Tile(_picture(source.read(found.row)), _words(f"{found.cosine:.3f}", found.label, found.path))
            for found in result.neighbors
        ),
    ]
    return draw_sheet([tiles[i : i + ACROSS] for i in range(0, len(tiles), ACROSS)])


def _words(first: str, label: str, path: str) -> tuple[str, ...]:
    return (first, *([label] if label else []), Path(path).name)


def _picture(image: Image.Image | Unreadable) -> Image.Image | None:
    return None if isinstance(image, Unreadable) else image


def _row(opened: Embeddings, row: int) -> tuple[npt.NDArray[np.float32], str, str]:
    """Return features (D,), path and label of a row."""
    if row >= len(opened.features):
        raise UsageError(
            f"row {row} does not exist: {opened.folder} has rows 0 to {len(opened.features) - 1}; choose one of these"
        )
    entry = next(itertools.islice(opened.index(), row, None))
    if entry.status != OK:
        raise DataError(f"row {row} ({entry.path}) has no features ({entry.status}); choose another row")
    return np.array(opened.features[row]), entry.path, entry.label


def _label_of(opened: Embeddings, image: str) -> str:
    """Return the label of an image file if it is one of the rows; else an empty string."""
    root = opened.meta["root"]
    if root is None or not below(root, os.path.abspath(image)):  # lexical, so a stranger's root is not touched
        return ""
    path = Path(os.path.relpath(image, root)).as_posix()
    return next((entry.label for entry in opened.index() if entry.path == path), "")


def _embed(opened: Embeddings, image: str, weights: str | None) -> npt.NDArray[np.float32]:
    """Return features (D,) of an image file, computed like those of the rows."""
    meta = opened.meta
    named = meta["weights"] if weights is None else weights
    if weights is None and ("://" in named or named.startswith(("//", "\\\\"))):  # the folder may be a stranger's
        raise WeightsError(
            f"{opened.folder} says that its weights are at {named}; if you trust that, repeat it as --weights {named}"
        )
    embedder = load_embedder(named)
    if embedder.sha256 != meta["weights_sha256"]:
        raise WeightsError(
            f"{named} has changed since {opened.folder} was written: its sha256 starts with "
            f"{embedder.sha256[:10]}, not {meta['weights_sha256'][:10]}; restore it, or embed again with --overwrite"
        )
    try:
        embedder.preprocessing = Preprocessing.from_dict(meta["preprocessing"])
    except (ConfigError, TypeError, ValueError) as error:
        raise DataError(
            f"the preprocessing that {opened.folder} names cannot be: {error}; embed again with --overwrite"
        ) from error
    features = embedder.encode([image])[0]
    if 0 in embedder.failed:
        raise DataError(f"cannot read {image}: {embedder.failed[0].why}; give an image")
    return features
