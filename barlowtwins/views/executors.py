"""Which executor makes a run's views, and where: Pillow in worker processes, or the batched one on the device.

| images | executor | worker processes | this process |
|---|---|---|---|
| any | pillow | read, make whole views | moves floats to the device |
| of one size, in memory | batched | none | all: the images lie on the device as uint8 |
| any | fast | read; make whole views with OpenCV, to uint8 | normalises, on the device |
| any other | batched | read; crop, resize and flip with Pillow, to uint8 | the colours, on the device |

The views are the same function of (seed, epoch, index) either way, up to what `augment_batched` states.
"""

# N images of the source, n in a batch of this process, C channels, H x W their size, S side of the views

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from barlowtwins.core.errors import ConfigError
from barlowtwins.data.batches import Readable, Reader, read_ahead
from barlowtwins.data.fast_jpeg import read_pixels, require_simplejpeg
from barlowtwins.data.images import Unreadable
from barlowtwins.data.preprocess import as_image
from barlowtwins.data.sources import Source
from barlowtwins.views.augmentation import Augmentation, ViewParameters, draw_views, rng_for
from barlowtwins.views.batched import finish_views, make_views, normalize, to_device
from barlowtwins.views.draw import DrawnViews, draw_batch, pack_views
from barlowtwins.views.opencv import require_opencv
from barlowtwins.views.pillow import crop_view
from barlowtwins.views.transform import TwinTransform, to_levels
from barlowtwins.views.twins import Reading, Rows, TwinBatch, TwinReader

__all__ = ["ArrayTwins", "CropReader", "Executor", "LevelBatch"]

BATCHED = 96  # pixels: up to here one core makes batched views in less time than Pillow's; beyond, products grow faster
LUMA = np.array([19595, 38470, 7471], np.uint32)  # as Pillow turns RGB to grey, in units of 2**-16


class Executor:
    """Makes the batches of a run.

    Args:
        source: the images.
        transform: the recipe and the seed.
        device: where the network is.
        backend: "pillow", "fast", "batched", or "auto": batched where that is faster, which is on a GPU, and on a CPU
            for small images in memory; else pillow.

    Raises:
        ConfigError: channels that the backend does not have.
        MissingExtraError: "fast" without OpenCV or simplejpeg.
    """

    def __init__(self, source: Source, transform: TwinTransform, device: torch.device, backend: str = "auto") -> None:
        images = source.array()
        channels = transform.recipe.channels
        if not {channels, source.channels} <= {1, 3}:  # Pillow's images are grey or RGB
            if images is None or backend in ("pillow", "fast") or channels != source.channels:
                raise ConfigError(
                    f"{source.name} has {source.channels} channels, the network {channels}: others than grey and RGB "
                    "are trained on as they are, from memory, by --augment-backend batched"
                )
            backend = "batched"
        if backend == "auto":
            small = images is not None and max(*images.shape[1:3], transform.recipe.size) <= BATCHED
            backend = "batched" if small or device.type != "cpu" else "pillow"
        if backend == "fast":
            require_opencv()
            require_simplejpeg()
        self.backend: Literal["pillow", "fast", "batched"] = backend  # type: ignore[assignment]  # checked by config
        self.source, self.transform, self.device = source, transform, device
        self.in_memory = self.backend == "batched" and images is not None
        self._reader: Reader[Rows, TwinBatch | LevelBatch]
        if self.backend == "batched" and images is not None:
            self._reader = ArrayTwins(images, transform, device)
        elif self.backend == "batched":
            self._reader = CropReader(source, transform)
        else:
            self._reader = (TwinReader if self.backend == "pillow" else FastReader)(source, transform)

    def workers(self, asked: int) -> int:
        """Processes that read: as many as asked for, or none if there is nothing to read."""
        return 0 if self.in_memory else asked

    def __str__(self) -> str:
        return f"views by {self.backend}{' from memory' if self.in_memory else ''}"

    def __getitem__(self, rows: Rows) -> TwinBatch:
        """One batch, all made in this process."""
        return self._finish(self._reader[rows])

    @contextlib.contextmanager
    def batches(self, plan: Iterable[Rows], *, workers: int) -> Iterator[Iterator[TwinBatch]]:
        """The batches of `plan`, in its order; `workers` processes read ahead where there is something to read.

        Raises:
            DataError: a worker died or hangs.
        """
        pin = self.device.type == "cuda"
        with read_ahead(self._reader, plan, workers=self.workers(workers), pin_memory=pin) as made:
            yield map(self._finish, made)

    def _finish(self, batch: TwinBatch | LevelBatch) -> TwinBatch:
        """What is left to do on the device."""
        if isinstance(batch, TwinBatch):
            return batch
        levels, recipe = batch.levels.to(self.device, non_blocking=True), self.transform.recipe
        if batch.drawn is None:
            y1, y2 = (normalize(to_levels(views), recipe) for views in levels)
        else:
            y1, y2 = finish_views(levels, batch.drawn, recipe)
        return TwinBatch(batch.rows, y1, y2, batch.unreadable, batch.exhausted)


class ArrayTwins:
    """Batches from images in memory: one call of the batched executor each, with no file and no worker.

    Args:
        images: (N, H, W) or (N, H, W, C) uint8.
        transform: the recipe and the seed.
        device: where the images are kept, if they take less than half of what is free there, and the views are made.
    """

    def __init__(self, images: npt.NDArray[np.uint8], transform: TwinTransform, device: torch.device) -> None:
        self.transform, self.device = transform, device
        kept = torch.from_numpy(with_channels(images, transform.recipe.channels))  # (N, H, W, C)
        self.images = kept.to(device) if _fits(kept, device) else kept

    def __getitem__(self, rows: Rows) -> TwinBatch:
        _, height, width, _ = self.images.shape
        seed = self.transform.seed or 0
        indices = np.array(rows.indices, np.int64)
        drawn = draw_batch(self.transform.recipe, width, height, seed=seed, epoch=rows.epoch, indices=indices)
        images = self.images.index_select(0, to_device(indices, self.images.device))  # (n, H, W, C)
        if images.device != self.device:
            images = to_device(images.numpy(), self.device)
        return TwinBatch(rows, *make_views(images, drawn, self.transform.recipe), {}, False)


def _fits(images: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2


def with_channels(images: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8]:
    """Images (N, H, W) or (N, H, W, 3) as (N, H, W, C): grey ones in each colour, colours as Pillow turns them grey."""
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[3] == channels:
        return np.require(images, requirements=["C", "W"])  # torch warns of arrays that cannot be written
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    grey = np.empty((*images.shape[:3], 1), np.uint8)
    for start in range(0, len(images), 4096):  # in pieces, since the sums take four times the memory
        grey[start : start + 4096, ..., 0] = (images[start : start + 4096] @ LUMA + 0x8000) >> 16
    return grey


class LevelBatch(NamedTuple):
    """What a worker leaves to be finished on the device."""

    rows: Rows
    levels: Tensor
    """(2, n, S, S, C) uint8: first views, then second ones."""
    drawn: DrawnViews | None
    """What is still to be done to the colors of each; None: nothing."""
    unreadable: dict[int, Unreadable]
    exhausted: bool
    """As of `TwinBatch`."""


class FastReader:
    """Reads and distorts images by OpenCV, in whichever process it is called."""

    def __init__(self, source: Source, transform: TwinTransform) -> None:
        self.source, self.transform = Pixels(source, transform.recipe.channels), transform

    def __getitem__(self, rows: Rows) -> LevelBatch:
        seed = self.transform.seed or 0
        levels = _blank_levels(rows, self.transform.recipe)
        reading = Reading(self.source, rows, seed)
        for place, index, _, image in reading:
            levels[:, place] = self.transform.fast_views(image, seed, rows.epoch, index)
        return LevelBatch(rows, torch.from_numpy(levels), None, reading.unreadable, reading.exhausted)


class Pixels:
    """A source whose JPEG files are read without a detour through Pillow's images."""

    def __init__(self, source: Source, channels: int) -> None:
        self.source, self.channels = source, channels

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def read(self, index: int) -> Image.Image | npt.NDArray[np.uint8] | Unreadable:
        path = self.source.path(index) if self.channels == 3 else None
        return self.source.read(index) if path is None else read_pixels(path)


class CropReader:
    """Reads images and does the geometry of their views, in whichever process it is called."""

    def __init__(self, source: Readable, transform: TwinTransform) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, rows: Rows) -> LevelBatch:
        recipe, seed = self.transform.recipe, self.transform.seed or 0
        crops = _blank_levels(rows, recipe)
        pairs = [(BLANK, BLANK)] * len(rows.indices)
        reading = Reading(self.source, rows, seed)
        for place, index, _, read in reading:
            image = as_image(read, recipe.channels)
            pairs[place] = draw_views(recipe, image.width, image.height, rng_for(seed, rows.epoch, index))
            for view, parameters in enumerate(pairs[place]):
                crops[view, place] = np.asarray(crop_view(image, parameters, recipe)).reshape(crops.shape[2:])
        return LevelBatch(rows, torch.from_numpy(crops), pack_views(pairs), reading.unreadable, reading.exhausted)


BLANK = ViewParameters(0, 0, 1, 1)  # of an image that nothing stands in for: the run ends there


def _blank_levels(rows: Rows, recipe: Augmentation) -> npt.NDArray[np.uint8]:
    return np.zeros((2, len(rows.indices), recipe.size, recipe.size, recipe.channels), np.uint8)
