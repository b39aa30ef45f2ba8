"""Batches of labeled images for supervised training: random crops and flips, a function of (seed, epoch, index)."""

# n images in a batch of this process, C channels, S side in pixels

from __future__ import annotations

from typing import NamedTuple

import torch
from PIL import Image

from barlowtwins.data.images import Unreadable
from barlowtwins.data.preprocess import INTERPOLATIONS, ImageLike, Preprocessing, as_image, to_tensor
from barlowtwins.evaluate.labeled import LabeledImages
from barlowtwins.views.augmentation import Augmentation, draw_view, rng_for
from barlowtwins.views.twins import Reading, Rows

__all__ = ["CropFlip", "LabeledBatch", "LabeledReader"]


class CropFlip:
    """RandomResizedCrop and RandomHorizontalFlip, as published for the linear probe and for fine-tuning.

    Args:
        preprocessing: of the weights: gives the side S, the interpolation, mean and std.
        scale: area of the crop as a fraction of the image's, from and to; (0.08, 1) as published.
        seed: of the pure function.
    """

    def __init__(
        self, preprocessing: Preprocessing, *, scale: tuple[float, float] = (0.08, 1.0), seed: int = 0
    ) -> None:
        self.preprocessing, self.seed = preprocessing, seed
        self.recipe = Augmentation("crop-flip", preprocessing.image_size, scale)  # of which no more is used

    def __call__(self, image: Image.Image | ImageLike, *, epoch: int, index: int) -> torch.Tensor:
        """A view of the image: (C, S, S) float32.

        Args:
            image: a PIL image of any mode and size, a uint8 array, or a path.
            epoch: from 0.
            index: the image's place in its source.

        Raises:
            DataError: the file cannot be read, or the array is not an image.
        """
        how = self.preprocessing
        source = as_image(image, how.channels)
        params = draw_view(self.recipe, 0, source.width, source.height, rng_for(self.seed, epoch, index))
        view = source.crop((params.left, params.top, params.left + params.width, params.top + params.height))
        view = view.resize((how.image_size, how.image_size), INTERPOLATIONS[how.interpolation])
        if params.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(view, how.mean, how.std)


class LabeledBatch(NamedTuple):
    """The training batch of one process for one step."""

    rows: Rows
    images: torch.Tensor
    """(n, C, S, S) float32."""
    labels: torch.Tensor
    """(n,) int64."""
    unreadable: dict[int, Unreadable]
    """By index: unreadable images; substituted by others, with the labels of those."""
    exhausted: bool
    """No replacement could be read either."""


class LabeledReader:
    """Read and crop the images of `Rows`, in any process.

    Args:
        train: labeled images.
        transform: what makes a view of an image.
    """

    def __init__(self, train: LabeledImages, transform: CropFlip) -> None:
        self.source, self.labels, self.transform = train.source, train.labels, transform

    def __getitem__(self, rows: Rows) -> LabeledBatch:
        how, n = self.transform.preprocessing, len(rows.indices)
        images = torch.zeros(n, how.channels, how.image_size, how.image_size)  # (n, C, S, S)
        classes = torch.zeros(n, dtype=torch.int64)
        reading = Reading(self.source, rows, self.transform.seed)
        for place, index, read, image in reading:
            images[place] = self.transform(image, epoch=rows.epoch, index=index)
            classes[place] = int(self.labels[read])
        return LabeledBatch(rows, images, classes, reading.unreadable, reading.exhausted)
