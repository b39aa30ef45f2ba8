"""Fault 37: images of 1x1, 1x5000 and 5000x1 pixels pass through every executor and the evaluation transform."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.views.transform import AUGMENTATIONS, TwinTransform

SLENDER = [(1, 1), (1, 5000), (5000, 1), (2, 5000), (5000, 3)]
PLAIN = {"jitter_p": 0.0, "grey_p": 0.0, "solarize_p": (0.0, 0.0)}


def ramp(width: int, height: int) -> Image.Image:
    """Levels rise from 0 at one end to 250 at the other; one pixel is black."""
    levels = np.linspace(0, 250, width * height).reshape(height, width)
    return Image.fromarray(np.repeat(levels[..., None], 3, axis=-1).round().astype(np.uint8))


@pytest.mark.parametrize("backend", ["pillow", "batched"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize(("width", "height"), SLENDER)
def test_37_twin_views_show_the_middle_of_the_image(width: int, height: int, name: str, backend: str) -> None:
    recipe = dataclasses.replace(AUGMENTATIONS[name], size=24, **PLAIN)  # type: ignore[arg-type]
    transform, image = TwinTransform(recipe, backend), ramp(width, height)
    level = np.asarray(image)[height // 2, width // 2, 0] / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    for index in range(5):
        for view in transform(image, epoch=0, index=index):
            assert view.shape == (recipe.channels, 24, 24)
            # So slender an image admits only crops of a few pixels in a row: every pixel is near one level.
            spread = 0.0 if width * height == 1 else 0.5 if min(width, height) > 1 else 0.01
            assert ((view * std + mean - level).abs() <= spread + 1e-6).all()


@pytest.mark.parametrize("backend", ["pillow", "batched"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize(("width", "height"), SLENDER)
def test_37_twin_views_with_every_distortion_stay_in_range(width: int, height: int, name: str, backend: str) -> None:
    recipe = dataclasses.replace(
        AUGMENTATIONS[name], size=24, jitter_p=1.0, grey_p=1.0, blur_p=(1.0, 1.0), solarize_p=(1.0, 1.0)
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    for index in range(5):
        for view in TwinTransform(recipe, backend)(ramp(width, height), epoch=0, index=index):
            pixels = view * std + mean
            assert view.shape == (recipe.channels, 24, 24)
            assert (pixels >= -1e-6).all() and (pixels <= 128 / 255 + 1e-6).all()  # bright levels are inverted


@pytest.mark.parametrize("resize", [256, None])
@pytest.mark.parametrize(("width", "height"), SLENDER)
def test_37_evaluation_shows_the_middle_of_the_image(width: int, height: int, resize: int | None) -> None:
    image = ramp(width, height)
    pixels = Preprocessing(224, resize, mean=(0.0,) * 3, std=(1.0,) * 3)(image) * 255
    assert pixels.shape == (3, 224, 224)
    middle = np.asarray(image, dtype=float).mean()
    assert abs(pixels.mean().item() - middle) < 1
