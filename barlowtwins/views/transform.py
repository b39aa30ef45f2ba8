"""Two distorted views of an image: the transform of Barlow Twins.

    y1, y2 = TwinTransform("imagenet")(image)                        # two (3, 224, 224) float32 tensors

The numbers and their drawing are in `recipe`, the published operations in `augment_pillow`, nearly the same ones by
OpenCV in `augment_opencv`, for whole batches in `augment_batched`; all names are at hand here.
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


def to_tensor(image: Image.Image, recipe: AugmentRecipe) -> torch.Tensor:
    """Scale to [0, 1] and normalise by the recipe's mean and std: (C, S, S) float32."""
    return image_to_tensor(image, recipe.mean, recipe.std)


def to_levels(views: npt.NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """(N, S, S, C) uint8 -> (N, C, S, S) float32 levels, where the views are."""
    return torch.as_tensor(views).permute(0, 3, 1, 2).float()


class TwinTransform:
    """Turns an image into two independently distorted views of it.

    Given `epoch` and `index`, the views are a pure function of (seed, epoch, index) and the image: the same in any
    process, in any order. Without them the randomness is that of torch's global generator, as in torchvision's own
    transforms: `torch.manual_seed` repeats it, and every worker of a DataLoader has its own, new in each epoch.

    Args:
        recipe: "imagenet", "small", "grey", "shapes", "fashion-mnist" or an `AugmentRecipe`.
        backend: "pillow", the published operations to the letter; "fast", nearly the same by OpenCV (extra `fast`;
            the differences are in `augment_opencv`); "batched", what `augment_batched` makes of a batch, here of one;
            "auto", the reference, which is "pillow".
        size: side S of the views in pixels, instead of the recipe's.
        channels: 3 (RGB) or 1 (grey), instead of the recipe's.
        seed: of the pure function, 0 unless told.

    Raises:
        ConfigError: an unknown recipe or backend (with a suggestion), or a number out of its range.
        MissingExtraError: the backend is "fast", and OpenCV or simplejpeg is not installed.
    """

    def __init__(
        self,
        recipe: str | AugmentRecipe = "imagenet",
        backend: str = "auto",
        *,
        size: int | None = None,
        channels: int | None = None,
        seed: int | None = None,
    ) -> None:
        if backend not in BACKENDS:
            close = difflib.get_close_matches(backend, BACKENDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(BACKENDS)}"
            raise ConfigError(f"unknown backend {backend!r}; {hint}")
        if backend == "fast":
            require_opencv()
            require_simplejpeg()
        recipe = augmentation(recipe) if isinstance(recipe, str) else recipe
        recipe = dataclasses.replace(recipe, size=recipe.size if size is None else size)
        self.recipe = recipe if channels is None else recipe.with_channels(channels)
        self.backend = backend
        self.seed = seed

    def __call__(self, image: ImageLike, *, epoch: int | None = None, index: int | None = None) -> Views:
        """Distort one image twice.

        Args:
            image: a PIL image of any mode and size, an (H, W) or (H, W, C) uint8 array, or a path.
            epoch: from 0; only together with `index`.
            index: the image's place in its data set, from 0.

        Returns:
            two (C, S, S) float32 tensors.

        Raises:
            DataError: the file cannot be read, or the array is not an image.
            ConfigError: `epoch` without `index` or the reverse; a seed but neither of them.
        """
        if self.backend == "fast":
            y1, y2 = normalize(to_levels(self.fast_views(image, *self._key(epoch, index))), self.recipe)
            return y1, y2
        source = as_image(image, self.recipe.channels)
        rng = rng_for(*self._key(epoch, index))
        pair = draw_views(self.recipe, source.width, source.height, rng)
        if self.backend == "batched":
            pixels = torch.from_numpy(np.array(source)).reshape(1, source.height, source.width, -1)  # (1, H, W, C)
            y1, y2 = make_views(pixels, pack_views([pair]), self.recipe)
            return y1[0], y2[0]
        return self._render(source, pair[0]), self._render(source, pair[1])

    def fast_views(self, image: ImageLike, seed: int, epoch: int, index: int) -> npt.NDArray[np.uint8]:
        """Both views by OpenCV as levels, (2, S, S, C): what a worker hands on, to be normalised on the device.

        Raises:
            DataError: as calling the transform does.
        """
        recipe = self.recipe
        if recipe.channels == 3 and isinstance(image, (str, os.PathLike)):
            read = read_pixels(image)
            image = as_image(image) if isinstance(read, Unreadable) else read  # which raises with the reason
        pixels = image
        if not (isinstance(pixels, np.ndarray) and pixels.shape[2:] == (3,) and recipe.channels == 3):
            pixels = np.asarray(as_image(pixels, recipe.channels))
        height, width = pixels.shape[:2]
        pair = draw_views(recipe, width, height, rng_for(seed, epoch, index))
        made = [apply_fast(pixels, params, recipe) for params in pair]
        return np.stack(made).reshape(2, recipe.size, recipe.size, recipe.channels)

    def _key(self, epoch: int | None, index: int | None) -> tuple[int, int, int]:
        if epoch is not None and index is not None:
            return self.seed or 0, epoch, index
        if epoch is not None or index is not None:
            raise ConfigError("views are a function of epoch and index together; give both, or neither")
        if self.seed is not None:
            raise ConfigError(
                f"seed={self.seed} makes the views a function of (seed, epoch, index): call with epoch= and index=, "
                "or leave the seed out and use torch.manual_seed"
            )
        return int(torch.randint(2**63 - 1, (), device="cpu")), 0, 0

    def _render(self, source: Image.Image, params: ViewParameters) -> torch.Tensor:
        return to_tensor(apply_view(source, params, self.recipe), self.recipe)

    def __repr__(self) -> str:
        return f"TwinTransform({self.recipe}, backend={self.backend!r}, seed={self.seed})"
