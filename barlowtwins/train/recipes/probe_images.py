"""What the images themselves say: their channels and size, from a look at a few of them."""

# C channels, H x W height and width

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from barlowtwins.core.progress import say
from barlowtwins.data.images import Unreadable
from barlowtwins.data.sources import Source

__all__ = ["Observed", "observe"]

LOOKED_AT = 256  # images, evenly spread: 5 % of color among them is missed once in half a million folders
DARK = 16  # of 255: what 4095 of 65535 becomes


class Observed(NamedTuple):
    """What settings may follow."""

    channels: int
    """C of what is trained on: 1 where every image looked at is grey, though the source gives RGB."""
    size: tuple[int, int] | None
    """(H, W) where all have the same."""


def observe(source: Source) -> Observed:
    """Look at images of a source, unless it knows its images' size already; say so where they are taken as grey.

    A folder cannot say what is in its files; 256 of them, evenly spread, can. Those that cannot be read say nothing.
    """
    if source.size is not None:
        return Observed(source.channels, source.size)
    rows = np.unique(np.linspace(0, max(0, len(source) - 1), min(len(source), LOOKED_AT)).round().astype(np.int64))
    sizes: set[tuple[int, ...]] = set()
    seen, brightest, grey = 0, 0, source.channels == 3
    for row in rows.tolist():
        image = source.read(row)
        if isinstance(image, Unreadable):
            continue
        pixels = np.asarray(image)  # (H, W) or (H, W, C)
        seen += 1
        sizes.add(pixels.shape[:2])
        brightest = max(brightest, int(pixels.max()))
        grey = grey and bool((pixels == pixels[..., :1]).all())
        if not grey and len(sizes) > 1 and brightest > DARK:
            break  # no other image would change what is known
    if seen and brightest <= DARK:
        say(
            f"{source.name}: the brightest of {seen} images reaches level {brightest} of 255, as 12-bit values in "
            f"16-bit files do; channels:0-4095:FOLDER scales those, and `check` tells the depth"
        )
    size = sizes.pop() if len(sizes) == 1 else None
    if not seen or not grey:
        return Observed(source.channels, size)  # type: ignore[arg-type]  # H and W
    looked = f"all {seen}" if seen == len(source) else f"{seen} of {len(source)}, all that were looked at,"
    say(f"{source.name}: {looked} images are grey, so 1 channel by default; --channels 3 trains in color")
    return Observed(1, size)  # type: ignore[arg-type]
