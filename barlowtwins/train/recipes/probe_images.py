"""What the images themselves say: their channels and size, from a look at a few of them."""

# C channels, H x W height and width

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from barlowtwins.data.images import Unreadable
from barlowtwins.data.sources import Source

__all__ = ["Observed", "observe"]

LOOKED_AT = 16  # images, evenly spread


class Observed(NamedTuple):
    """What settings may follow."""

    channels: int
    """C of what is trained on: 1 where every image looked at is grey, though the source gives RGB."""
    size: tuple[int, int] | None
    """(H, W) where all have the same."""


def observe(source: Source) -> Observed:
    """Look at a few images of a source, unless it knows its images' size already.

    A folder cannot say what is in its files; 16 of them, evenly spread, can. Those that cannot be read say nothing.
    """
    if source.size is not None:
        return Observed(source.channels, source.size)
    rows = np.unique(np.linspace(0, max(0, len(source) - 1), min(len(source), LOOKED_AT)).round().astype(np.int64))
    seen = [image for row in rows.tolist() if not isinstance(image := source.read(row), Unreadable)]
    if not seen:
        return Observed(source.channels, None)
    pixels = [np.asarray(image) for image in seen]  # (H, W) or (H, W, C) each
    sizes = {array.shape[:2] for array in pixels}
    grey = source.channels == 3 and all((array == array[..., :1]).all() for array in pixels)
    return Observed(1 if grey else source.channels, sizes.pop() if len(sizes) == 1 else None)
