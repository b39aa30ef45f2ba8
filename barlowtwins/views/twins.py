"""Batches of twins for training: which images, in which order, distorted how - all a function of (seed, epoch, index).

There is no hidden state: step 12,345 of a run is the same batch after a resume, with any number of workers, and
on any number of processes, each of which makes its own rows of the global batch.
"""

# N images in the global batch, n = N / W on this process, C channels, S side in pixels, W processes

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from barlowtwins.data.batches import Readable
from barlowtwins.data.images import Unreadable
from barlowtwins.data.preprocess import ImageLike
from barlowtwins.views.transform import TwinTransform

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Reading", "Rows", "TwinBatch", "TwinReader", "epoch_order", "plan_batches"]

TRIES = 100  # replacements for an unreadable image; if one in a hundred is bad, the chance that all are is 1e-200


class Rows(NamedTuple):
    """What a process reads for one step."""

    step: int
    epoch: int
    indices: tuple[int, ...]
    """(n,) images of the source."""


class TwinBatch(NamedTuple):
    """Two views of this process's images for one step."""

    rows: Rows
    y1: torch.Tensor
    """(n, C, S, S) float32."""
    y2: torch.Tensor
    """(n, C, S, S) float32."""
    unreadable: dict[int, Unreadable]
    """By index: images that could not be read; others stand in for them."""
    exhausted: bool
    """No replacement could be read either; the batch has blank images in it."""


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..count - 1 that is a function of (seed, epoch), (count,) int64."""
    return np.random.default_rng([seed, epoch, 0]).permutation(count)


def plan_batches(
    count: int, batch_size: int, *, seed: int, start: int, stop: int, rank: int = 0, world_size: int = 1
) -> Iterator[Rows]:
    """What this process reads at each step from `start` to `stop`, across epochs.

    An epoch is `count // batch_size` whole batches of its own order; what is left over has its turn in other epochs.

    Args:
        count: images in the source.
        batch_size: N, a multiple of `world_size`, at most `count`.
        seed: of the order.
        start, stop: optimizer steps, half-open.
        rank, world_size: this process takes rows rank * n to (rank + 1) * n of each batch.
    """
    steps_per_epoch, share = count // batch_size, batch_size // world_size
    order, order_epoch = np.empty(0, dtype=np.int64), -1
    for step in range(start, stop):
        epoch, place = divmod(step, steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(seed, epoch, count), epoch
        first = place * batch_size + rank * share
        yield Rows(step, epoch, tuple(order[first : first + share].tolist()))


class TwinReader:
    """Reads and distorts the images of `Rows`, in whichever process it is called."""

    def __init__(self, source: Readable, transform: TwinTransform) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, rows: Rows) -> TwinBatch:
        recipe = self.transform.recipe
        y1, y2 = torch.zeros(2, len(rows.indices), recipe.channels, recipe.size, recipe.size)  # (n, C, S, S) each
        reading = Reading(self.source, rows, self.transform.seed or 0)
        for place, index, _, image in reading:
            y1[place], y2[place] = self.transform(image, epoch=rows.epoch, index=index)
        return TwinBatch(rows, y1, y2, reading.unreadable, reading.exhausted)


class Reading:
    """The loop over the images of a batch; what could not be read is known after it.

        reading = Reading(source, rows, seed)
        for place, index, read, image in reading:
            ...

    `place` is that in the batch, `index` that in the epoch's order, of which the views are a function; `read` is the
    image of the source that stands there, another than `index` if that one cannot be read.
    """

    def __init__(self, source: Readable, rows: Rows, seed: int) -> None:
        self._source, self._rows, self._draw = source, rows, (seed, rows.epoch)
        self.unreadable: dict[int, Unreadable] = {}
        """By index: images that could not be read; others stand in for them."""
        self.exhausted = False
        """No replacement could be read either: the loop left a place out."""

    def __iter__(self) -> Iterator[tuple[int, int, int, Image.Image | ImageLike]]:
        for place, index in enumerate(self._rows.indices):
            found = read_or_replace(self._source, index, self._draw, self.unreadable)
            if found is None:
                self.exhausted = True
            else:
                yield place, index, *found


def read_or_replace(
    source: Readable, index: int, draw: tuple[int, int], unreadable: dict[int, Unreadable]
) -> tuple[int, Image.Image | ImageLike] | None:
    """Read an image, or another in its place if it cannot be read.

    The other is drawn from (seed, epoch, index): never a neighbour, whose folder may be bad as a whole, and never
    silently.

    Args:
        source: the images.
        index: which one.
        draw: (seed, epoch).
        unreadable: gets the images that were tried and could not be read, by index.

    Returns:
        The index and the image that was read, or None if none could be.
    """
    image = source.read(index)
    if not isinstance(image, Unreadable):
        return index, image
    unreadable[index] = image
    rng = np.random.default_rng([*draw, 1, index])
    for other in rng.integers(len(source), size=TRIES).tolist():
        image = source.read(other)
        if not isinstance(image, Unreadable):
            return other, image
        unreadable[other] = image
    return None
