"""Two distorted views of an image: the transform of Barlow Twins.

    y1, y2 = TwinTransform("imagenet")(image)                        # two (3, 224, 224) float32 tensors

The numbers and the random draw are in augmentation.py, the published operations in pillow.py, close approximations with
OpenCV in opencv.py, and for whole batches in batched.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from barlowtwins.core.errors import ConfigError
from barlowtwins.data.fast_jpeg import read_pixels, require_simplejpeg
from barlowtwins.data.images import Unreadable
from barlowtwins.data.preprocess import ImageLike, as_image, to_tensor as image_to_tensor
from barlowtwins.views.augmentation import (
    AUGMENTATIONS,
    Augmentation,
    AugmentRecipe,
    Jitter,
    ViewParameters,
    augmentation,
    draw_view,
    draw_views,
    rng_for,
)
from barlowtwins.views.batched import make_views, normalize
from barlowtwins.views.draw import pack_views
from barlowtwins.views.opencv import apply_view as apply_fast, require_opencv
from barlowtwins.views.pillow import apply_view

__all__ = [
    "AUGMENTATIONS",
    "AugmentRecipe",
    "Augmentation",
    "Jitter",
    "TwinTransform",
    "ViewParameters",
    "apply_view",
    "augmentation",
    "draw_view",
    "draw_views",
    "rng_for",
    "to_tensor",
]

Views: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"  # (C, S, S) each

BACKENDS = ("auto", "pillow", "fast", "batched")


def to_tensor(image: Image.Image, augmentation: Augmentation) -> torch.Tensor:
    """Scale to [0, 1] and normalize with the mean and std of the augmentation: (C, S, S) float32."""
    return image_to_tensor(image, augmentation.mean, augmentation.std)


def to_levels(views: npt.NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """(N, S, S, C) uint8 -> (N, C, S, S) float32 levels, on the same device."""
    return torch.as_tensor(views).permute(0, 3, 1, 2).float()


class TwinTransform:
    """Make two independently distorted views of an image.

    With `epoch` and `index`, the views are a pure function of (seed, epoch, index) and the image: the same in any
    process and any order. Without them the views use torch's global generator, like torchvision's transforms:
    `torch.manual_seed` repeats them, and every worker of a DataLoader has its own generator, new in each epoch.

    Args:
        recipe: the augmentation: "imagenet", "small", "grey", "shapes", "fashion-mnist" or an `Augmentation`.
        backend: "pillow", exactly the published operations; "fast", nearly the same with OpenCV (extra `fast`; see
            opencv.py for the differences); "batched", the operations for batches, here with one image; "auto" means
            "pillow".
        size: side S of the views in pixels; by default that of the augmentation.
        channels: 3 (RGB) or 1 (grayscale); by default those of the augmentation.
        seed: seed of the pure function; 0 by default.

    Raises:
        ConfigError: an unknown augmentation or backend (with a suggestion), or a number out of range.
        MissingExtraError: the backend is "fast" and OpenCV or simplejpeg is not installed.
    """

    def __init__(
        self,
        recipe: str | Augmentation = "imagenet",
        backend: str = "auto",
        *,
        size: int | None = None,
        channels: int | None = None,
        seed: int | None = None,
    ) -> None:
        if backend not in BACKENDS:
            close = difflib.get_close_matches(backend, BACKENDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(BACKENDS)}"
            raise ConfigError(f"unknown backend {backend!r}; {hint}")
        if backend == "fast":
            require_opencv()
            require_simplejpeg()
        chosen = augmentation(recipe) if isinstance(recipe, str) else recipe
        chosen = dataclasses.replace(chosen, size=chosen.size if size is None else size)
        self.augmentation = chosen if channels is None else chosen.with_channels(channels)
        self.backend = backend
        self.seed = seed

    @property
    def recipe(self) -> Augmentation:
        """Earlier name of `augmentation`."""
        return self.augmentation

    def __call__(self, image: ImageLike, *, epoch: int | None = None, index: int | None = None) -> Views:
        """Distort one image twice.

        Args:
            image: a PIL image of any mode and size, an (H, W) or (H, W, C) uint8 array, or a path.
            epoch: from 0; only together with `index`.
            index: index of the image in its data set, from 0.

        Returns:
            two (C, S, S) float32 tensors.

        Raises:
            DataError: the file cannot be read, or the array is not an image.
            ConfigError: only one of `epoch` and `index` is given, or a seed without them.
        """
        if self.backend == "fast":
            y1, y2 = normalize(to_levels(self.fast_views(image, *self._key(epoch, index))), self.augmentation)
            return y1, y2
        source = as_image(image, self.augmentation.channels)
        rng = rng_for(*self._key(epoch, index))
        pair = draw_views(self.augmentation, source.width, source.height, rng)
        if self.backend == "batched":
            pixels = torch.from_numpy(np.array(source)).reshape(1, source.height, source.width, -1)  # (1, H, W, C)
            y1, y2 = make_views(pixels, pack_views([pair]), self.augmentation)
            return y1[0], y2[0]
        return self._render(source, pair[0]), self._render(source, pair[1])

    def fast_views(self, image: ImageLike, seed: int, epoch: int, index: int) -> npt.NDArray[np.uint8]:
        """Return both views made with OpenCV as levels, (2, S, S, C), to be normalized on the device.

        Raises:
            DataError: as when the transform is called.
        """
        numbers = self.augmentation
        if numbers.channels == 3 and isinstance(image, (str, os.PathLike)):
            read = read_pixels(image)
            image = as_image(image) if isinstance(read, Unreadable) else read  # raises with the reason
        pixels = image
        if not (isinstance(pixels, np.ndarray) and pixels.shape[2:] == (3,) and numbers.channels == 3):
            pixels = np.asarray(as_image(pixels, numbers.channels))
        height, width = pixels.shape[:2]
        pair = draw_views(numbers, width, height, rng_for(seed, epoch, index))
        made = [apply_fast(pixels, params, numbers) for params in pair]
        return np.stack(made).reshape(2, numbers.size, numbers.size, numbers.channels)

    def _key(self, epoch: int | None, index: int | None) -> tuple[int, int, int]:
        if epoch is not None and index is not None:
            return self.seed or 0, epoch, index
        if epoch is not None or index is not None:
            raise ConfigError("views need both epoch and index; give both, or neither")
        if self.seed is not None:
            raise ConfigError(
                f"with seed={self.seed} the views are a function of (seed, epoch, index); call with epoch= and index=, "
                "or omit the seed and use torch.manual_seed"
            )
        return int(torch.randint(2**63 - 1, (), device="cpu")), 0, 0

    def _render(self, source: Image.Image, params: ViewParameters) -> torch.Tensor:
        return to_tensor(apply_view(source, params, self.augmentation), self.augmentation)

    def __repr__(self) -> str:
        return f"TwinTransform({self.augmentation}, backend={self.backend!r}, seed={self.seed})"
