"""Which images are most like this one? The nearest rows of an EMB folder, by cosine, read from the disk in chunks."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from barlowtwins.config import NeighborsConfig
from barlowtwins.core.errors import DataError, UsageError, WeightsError
from barlowtwins.core.printing import table
from barlowtwins.data.images import Unreadable, read_image
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.embedding.embeddings import OK, Embeddings, open_embeddings
from barlowtwins.metrics.nearest import nearest
from barlowtwins.reports.thumbnails import images_of
from barlowtwins.reports.tiles import Tile, draw_sheet, require_picture, write_sheet

__all__ = ["Neighbor", "NeighborsResult", "Neighbour", "NeighboursResult", "neighbors", "neighbours"]

ACROSS = 6  # pictures a row of a sheet


@dataclass(frozen=True)
class Neighbor:
    """A row near to the query."""

    row: int
    path: str
    label: str
    """Class name; empty if unlabelled."""
    cosine: float


@dataclass(frozen=True)
class NeighborsResult:
    """The rows nearest to a query, nearest first."""

    query: str
    """The image file, or the row's own path."""
    neighbours: tuple[Neighbor, ...]
    label: str = ""
    """Class name of the query, if it is one of the rows and labelled; else empty."""
    sheet: str | None = None
    """The picture that was written."""

    @property
    def neighbors(self) -> tuple[Neighbor, ...]:
        """The rows; `neighbours` is their name in JSON."""
        return self.neighbours

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)

    def summary(self) -> str:
        """What a person is told."""
        rows = [[f"{found.cosine:.4f}", str(found.row), found.path, found.label] for found in self.neighbors]
        whose = f"{self.query} ({self.label})" if self.label else self.query
        picture = f"\nthe same as a picture: {self.sheet}" if self.sheet else ""
        return f"nearest to {whose}:\n{table(rows, ['cosine', 'row', 'path', 'label'])}{picture}"


def neighbors(config: NeighborsConfig) -> NeighborsResult:
    """Find the rows nearest to an image, which is embedded as they were, or to one of them, which is left out.

    Fewer than `k` are found where there are fewer readable images.

    Raises:
        DataError: no EMB folder, or an image that cannot be read.
        UsageError: there is no such row.
        OutputError: the picture cannot be written.
        WeightsError: the weights that made the rows are not where they were, or have changed.
    """
    if config.sheet:
        require_picture(config.sheet)
    opened = open_embeddings(config.embeddings)
    usable = opened.meta["rows"] - opened.meta["failed"]
    if config.query.isdecimal() and not Path(config.query).exists():
        own = int(config.query)
        query, name, label = _row(opened, own)
        wanted = min(config.k + 1, usable)  # one more: the row itself is its nearest
    else:
        own = -1
        query, name, label = _embed(opened, config.query), config.query, _label_of(opened, config.query)
        wanted = min(config.k, usable)
    if not wanted:
        raise DataError(f"no image in {config.embeddings} could be read; its index.csv says why")
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
        DataError: the images are not where they were.
    """
    source = images_of(opened, config.data_root)
    if source is None:
        raise DataError(f"the images of {opened.meta['data']}, for --sheet, are not at hand; --data-root says where")
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
    """Features (D,), path and label of a row."""
    if row >= len(opened.features):
        raise UsageError(
            f"there is no row {row}: {opened.folder} has rows 0 to {len(opened.features) - 1}; choose one of these"
        )
    entry = next(itertools.islice(opened.index(), row, None))
    if entry.status != OK:
        raise DataError(f"row {row} ({entry.path}) has no features ({entry.status}); choose another row")
    return np.array(opened.features[row]), entry.path, entry.label


def _label_of(opened: Embeddings, image: str) -> str:
    """The label of an image file that is one of the rows; else empty."""
    root, file = opened.meta["root"], Path(image).resolve()
    if root is None or not file.is_relative_to(Path(root).resolve()):
        return ""
    path = file.relative_to(Path(root).resolve()).as_posix()
    return next((entry.label for entry in opened.index() if entry.path == path), "")


def _embed(opened: Embeddings, image: str) -> npt.NDArray[np.float32]:
    """Features (D,) of an image file, made as the rows were."""
    meta = opened.meta
    embedder = load_embedder(meta["weights"])
    if embedder.sha256 != meta["weights_sha256"]:
        raise WeightsError(
            f"{meta['weights']} is not what made {opened.folder}: its sha256 begins {embedder.sha256[:10]}, not "
            f"{meta['weights_sha256'][:10]}; put the old file back, or embed again with --overwrite"
        )
    embedder.preprocessing = Preprocessing.from_dict(meta["preprocessing"])
    features = embedder.encode([image])[0]
    if 0 in embedder.failed:
        raise DataError(f"cannot read {image}: {embedder.failed[0].why}; give an image")
    return features
