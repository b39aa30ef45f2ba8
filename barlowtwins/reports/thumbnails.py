"""Thumbnails of the images of an EMB folder, singly or in sheets for a page."""

# s side of a thumbnail in pixels

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from barlowtwins.core.errors import DataError
from barlowtwins.core.progress import Progress
from barlowtwins.core.readers import below
from barlowtwins.data.batches import ranges, read_ahead
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import Source, has_split, open_source
from barlowtwins.data.remote import is_url
from barlowtwins.data.sources import FileSource
from barlowtwins.data.tars import is_tar
from barlowtwins.embedding.embeddings import Embeddings

__all__ = ["Sheets", "images_of", "sheets", "thumbnail"]

LEAST, MOST = 24, 96  # s
MARGIN = 0.95  # fraction of the budget to plan with, since the estimate comes from a sample
ACROSS = 16  # thumbnails per row and column of a sheet
QUALITY = 70
BYTES_A_PIXEL = 0.55 * 4 / 3  # of WebP at that quality in base64; a first estimate, corrected by a sample


def images_of(opened: Embeddings, data_root: str | None = None, data: str | None = None) -> Source | None:
    """Return the images of an EMB folder, row by row; None if they cannot be found.

    The folder may come from a stranger, so no URL and nothing outside the working folder is opened on its word alone.

    Args:
        opened: the EMB folder.
        data_root: folder of named data sets.
        data: the images as the user names them.

    Raises:
        DataError: the user must name the images first, or the index names files outside their folder.
    """
    meta = opened.meta
    recorded = meta["data"]
    keys = [entry.path for entry in opened.index()]
    root = meta["root"] if data is None else data
    if root is not None and (data is None or os.path.isdir(data)):
        return FileSource(recorded, Path(root), _below(opened, root, keys, confirmed=data is not None))
    recorded = recorded if data is None else data
    if is_url(recorded) or is_tar(recorded):
        if data is None and (is_url(recorded) or not below(".", recorded)):
            raise _unconfirmed(opened, recorded)
        return _opened_again(opened, recorded)
    if any(has_split(recorded, split) for split in ("test", "train")):
        name, colon, count = recorded.partition(":")
        if colon and count != str(meta["rows"]):
            return None
        for again in (recorded, f"{name}:{meta['rows']}"):
            for split in ("test", "train"):
                if (source := _opened_again(opened, again, split, data_root)) is not None:
                    return source
        return None
    if data is not None:
        return _opened_again(opened, data)
    if keys and all(below(".", key) for key in keys) and Path(keys[0]).is_file():  # paths that a caller gave
        return FileSource(recorded, None, keys)
    return None


def _below(opened: Embeddings, root: str, keys: list[str], *, confirmed: bool) -> list[str]:
    """`keys`, all of which lie below `root`, which lies below the working folder unless the user has named it."""
    if not confirmed and not below(".", root):
        raise _unconfirmed(opened, root)
    if outside := next((key for key in keys if not below(root, key)), None):
        raise DataError(f"{opened.folder} names {outside!r}, outside of {root}: refused; embed again with --overwrite")
    return keys


def _unconfirmed(opened: Embeddings, place: str) -> DataError:
    return DataError(
        f"{opened.folder} says that its images are in {place}, which is not below the working folder; if you trust "
        f"that, repeat it as --data {place}"
    )


def _opened_again(opened: Embeddings, name: str, split: str = "test", data_root: str | None = None) -> Source | None:
    """Return the source of this name if it still has the embedded images."""
    try:
        source = open_source(name, split=split, data_root=data_root)
    except DataError:
        return None
    same = len(source) == opened.meta["rows"] and source.fingerprint() == opened.meta["data_fingerprint"]
    return source if same else None


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """Center the whole image, RGB, in a side x side square; large images shrink, small ones keep their size."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    if small.size == (side, side):
        return small
    square = Image.new("RGB", (side, side), (128, 128, 128))
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return square


@dataclass(frozen=True)
class Sheets:
    """Sheets of `across` x `across` thumbnails, row by row; position i over all sheets is image i."""

    side: int
    across: int
    files: list[str]
    """WebP in base64."""
    count: int
    """Number of images with a thumbnail; these come first."""
    small: bool = False
    """Whether a larger budget would give larger thumbnails."""


def sheets(source: Source, rows: Sequence[int], *, budget: int, workers: int) -> Sheets:
    """Read images and arrange their thumbnails on sheets.

    Args:
        source: the images.
        rows: rows to read, in order.
        budget: maximum bytes of all sheets. The side is chosen so that all fit; thumbnails that do not fit at the
            smallest side are omitted.
        workers: number of reader processes.
    """
    side = _side(source, rows, budget)
    files: list[str] = []
    count = used = 0
    plan = [tuple(rows[r.start : r.stop]) for r in ranges(0, len(rows), ACROSS**2)]
    reader = _Reader(source, side)
    with (
        Progress(len(rows), desc="thumbnails") as progress,
        read_ahead(reader, plan, workers=min(workers, max(0, len(plan) - 1))) as made,
    ):
        for entry, sheet in zip(plan, made, strict=True):
            used += len(sheet)
            if used > budget:
                break
            files.append(sheet)
            count += len(entry)
            progress.update(len(entry))
    return Sheets(side, ACROSS, files, count, small=side < _most(source))


def _most(source: Source) -> int:
    return min(MOST, max(source.size) if source.size else MOST)


def _side(source: Source, rows: Sequence[int], budget: int) -> int:
    """Return the side at which all thumbnails should fit, estimated from a sample if needed."""
    most = _most(source)
    guess = math.sqrt(budget / (max(1, len(rows)) * BYTES_A_PIXEL))
    if guess > 2 * most:  # the budget is four times the expected size
        return most
    side = max(LEAST, min(most, int(guess)))
    trial = tuple(rows[:: -(-len(rows) // ACROSS**2)])
    for _ in range(2):  # smaller thumbnails have more bytes per pixel
        pixels = len(trial) * side**2
        right = math.sqrt(MARGIN * budget * pixels / (len(rows) * len(_Reader(source, side)[trial])))
        side = max(LEAST, min(most, int(right)))
    return side


class _Reader:
    """Makes one sheet, in the process that calls it."""

    def __init__(self, source: Source, side: int) -> None:
        self.source, self.side = source, side

    def __getitem__(self, rows: tuple[int, ...]) -> str:
        down = -(-len(rows) // ACROSS)
        sheet = np.full((down * self.side, ACROSS * self.side, 3), 128, np.uint8)
        for place, row in enumerate(rows):
            image = self.source.read(row)
            if not isinstance(image, Unreadable):
                top, left = (part * self.side for part in divmod(place, ACROSS))
                sheet[top : top + self.side, left : left + self.side] = np.asarray(thumbnail(image, self.side))
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "WEBP", quality=QUALITY, method=2)
        return base64.b64encode(file.getvalue()).decode("ascii")
