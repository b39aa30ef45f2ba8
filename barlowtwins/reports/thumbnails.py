"""The images behind an EMB folder's rows, read again and made small: one at a time, or in sheets for a page."""

# s side of a thumbnail in pixels

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from barlowtwins.core.errors import DataError
from barlowtwins.core.progress import Progress
from barlowtwins.data.batches import ranges, read_ahead
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import Source, has_split, open_source
from barlowtwins.data.remote import is_url
from barlowtwins.data.sources import FileSource
from barlowtwins.data.tars import is_tar
from barlowtwins.embedding.embeddings import Embeddings

__all__ = ["Sheets", "images_of", "sheets", "thumbnail"]

LEAST, MOST = 24, 96  # s
MARGIN = 0.95  # of the budget is planned with: a trial is not the whole
ACROSS = 16  # thumbnails a row and a column of a sheet
QUALITY = 70
BYTES_A_PIXEL = 0.55 * 4 / 3  # of a WebP file of that quality in base64; a guess that a trial sheet corrects


def images_of(opened: Embeddings, data_root: str | None = None) -> Source | None:
    """The images that an EMB folder was made of, row by row; None if they are not at hand.

    Args:
        opened: the EMB folder.
        data_root: where named data sets lie.
    """
    meta = opened.meta
    keys = [entry.path for entry in opened.index()]
    if meta["root"] is not None:
        return FileSource(meta["data"], Path(meta["root"]), keys)
    if is_url(meta["data"]) or is_tar(meta["data"]):
        return _opened_again(opened, meta["data"])
    if any(has_split(meta["data"], split) for split in ("test", "train")):
        for name in (meta["data"], f"{meta['data']}:{meta['rows']}"):
            for split in ("test", "train"):
                if (source := _opened_again(opened, name, split, data_root)) is not None:
                    return source
        return None
    if keys and Path(keys[0]).is_file():  # paths that a caller gave
        return FileSource(meta["data"], None, keys)
    return None


def _opened_again(opened: Embeddings, name: str, split: str = "test", data_root: str | None = None) -> Source | None:
    """The source of this name, if it still holds the images that were embedded."""
    try:
        source = open_source(name, split=split, data_root=data_root)
    except DataError:
        return None
    same = len(source) == opened.meta["rows"] and source.fingerprint() == opened.meta["data_fingerprint"]
    return source if same else None


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """The whole image, RGB, in the middle of a side x side square; larger images shrink, smaller ones stay."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    if small.size == (side, side):
        return small
    square = Image.new("RGB", (side, side), (128, 128, 128))
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return square


@dataclass(frozen=True)
class Sheets:
    """Thumbnails, `across` x `across` on a sheet, row by row; place i of them all is image i."""

    side: int
    across: int
    files: list[str]
    """WebP in base64."""
    count: int
    """Images that have a thumbnail: the first ones."""
    small: bool = False
    """Whether they are smaller than they would be with more bytes."""


def sheets(source: Source, rows: Sequence[int], *, budget: int, workers: int) -> Sheets:
    """Read images and put their thumbnails on sheets.

    Args:
        source: the images.
        rows: which of them, in order.
        budget: bytes of all sheets at most. The side is chosen so that all fit; what does not at the least side is
            left out.
        workers: processes that read.
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
    """The side with which all thumbnails should fit, from a trial of some where that is not obvious."""
    most = _most(source)
    guess = math.sqrt(budget / (max(1, len(rows)) * BYTES_A_PIXEL))
    if guess > 2 * most:  # there is room for four times the bytes that are expected
        return most
    side = max(LEAST, min(most, int(guess)))
    trial = tuple(rows[:: -(-len(rows) // ACROSS**2)])
    for _ in range(2):  # smaller ones have more bytes a pixel
        pixels = len(trial) * side**2
        right = math.sqrt(MARGIN * budget * pixels / (len(rows) * len(_Reader(source, side)[trial])))
        side = max(LEAST, min(most, int(right)))
    return side


class _Reader:
    """Makes one sheet, in whichever process it is called."""

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
