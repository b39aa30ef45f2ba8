"""`augment`: images and their views side by side, made by two executors, with the drawn parameters."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from barlowtwins.config import AugmentConfig, PretrainConfig
from barlowtwins.core.printing import plural
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import open_source
from barlowtwins.data.preprocess import as_image
from barlowtwins.reports.tiles import Tile, draw_sheet, require_picture, write_sheet
from barlowtwins.train.recipes import resolve
from barlowtwins.views.augmentation import Augmentation, ViewParameters, augmentation, draw_views, rng_for
from barlowtwins.views.batched import make_views
from barlowtwins.views.draw import pack_views
from barlowtwins.views.pillow import apply_view
from barlowtwins.views.transform import TwinTransform

__all__ = ["AugmentResult", "augment", "describe"]

SIDE = 208  # of a view in pixels, wide enough for the parameters below it
JITTER = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class AugmentResult:
    """Result of `augment`."""

    out: str
    augmentation: Augmentation
    images: int
    """Number of images shown; an unreadable image has an empty tile."""
    of: int
    """Number of images in the data."""
    views: int
    """Number of views of all images, each made by both executors."""

    def summary(self) -> str:
        """Return the result as text."""
        numbers = self.augmentation
        if self.images < self.of:
            shown = f"shows {self.images:,} of {plural(self.of, 'image')}, evenly spread (for more, raise --images)"
        else:
            shown = f"shows {'all ' if self.of > 1 else ''}{plural(self.of, 'image')}"
        return (
            f"{self.out} {shown}, and {plural(self.views, 'view')} of {numbers.size} x {numbers.size} pixels "
            f"({numbers.name}), each made by both executors"
        )


def augment(config: AugmentConfig) -> AugmentResult:
    """Draw images and their views as in pretraining with this seed, with the drawn parameters under each.

    Each pair of views has a row: the image, and both views, each made by the Pillow and the batched executor.

    Raises:
        DataError: the data does not exist.
        ConfigError: the augmentation is unknown.
        OutputError: the sheet cannot be written.
    """
    require_picture(config.out)
    source = open_source(config.data, split=config.split, data_root=config.data_root)
    name = config.augmentation
    if name == "auto":
        flags = PretrainConfig(config.data, "", image_size=config.image_size)
        name = resolve(flags, channels=source.channels, size=source.size).augmentation
    numbers = TwinTransform(augmentation(name), size=config.image_size, channels=source.channels).augmentation
    shown = np.unique(np.linspace(0, len(source) - 1, min(config.images, len(source))).round().astype(np.int64))

    rows, views = [], 0
    for index in shown.tolist():
        read = source.read(index)
        if isinstance(read, Unreadable):
            rows.append([Tile(None, (source.key(index), f"unreadable: {read.why}"), marked=True)])
            continue
        image = as_image(read, numbers.channels)
        for epoch in range(config.epoch, config.epoch + config.pairs):
            pair = draw_views(numbers, image.width, image.height, rng_for(config.seed, epoch, index))
            said = (source.key(index), f"{image.width} x {image.height}", f"epoch {epoch + 1}")
            rows.append([Tile(image, said, marked=True), *_views(image, pair, numbers)])
            views += 2
    title = f"{numbers.name}: {config.data}, views of {numbers.size} x {numbers.size}, seed {config.seed}"
    write_sheet(config.out, draw_sheet(rows, title=title, side=SIDE))
    return AugmentResult(config.out, numbers, len(shown), len(source), views)


def _views(image: Image.Image, pair: tuple[ViewParameters, ViewParameters], numbers: Augmentation) -> list[Tile]:
    """Make both views with the Pillow and the batched executor, and measure their difference."""
    levels = torch.from_numpy(np.array(image)).reshape(1, image.height, image.width, -1)
    plain = dataclasses.replace(numbers, mean=(0.0,) * numbers.channels, std=(1.0,) * numbers.channels)
    batched = make_views(levels, pack_views([pair]), plain)  # two of (1, C, S, S)
    tiles = []
    for number, (parameters, view) in enumerate(zip(pair, batched, strict=True), 1):
        drawn = describe(parameters)
        by_pillow = apply_view(image, parameters, numbers)
        tiles.append(Tile(by_pillow, (f"view {number} by pillow", *drawn)))
        pixels = (view[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()  # (S, S, C)
        pixels = pixels[..., 0] if numbers.channels == 1 else pixels
        off = np.abs(pixels.astype(int) - np.asarray(by_pillow)).mean()
        said = (f"view {number} by batched", *drawn, f"difference {off:.2f} of 255 levels")
        tiles.append(Tile(Image.fromarray(pixels), said))
    return tiles


def describe(parameters: ViewParameters) -> tuple[str, ...]:
    """Describe the parameters of a view in short lines: the crop, the color jitter in its order, the rest."""
    p = parameters
    lines = [f"crop {p.width} x {p.height} at {p.left}, {p.top}"]
    if p.jitter is not None:
        said = [f"{JITTER[i]} {p.jitter.factors[i]:{'+.2f' if i == 3 else '.2f'}}" for i in p.jitter.order]
        lines += [", ".join(said[:2]), ", ".join(said[2:])]
    rest = ["flip"] if p.flip else []
    rest += ["grayscale"] if p.grey else []
    rest += [f"blur {p.blur_sigma:.2f} px"] if p.blur_sigma is not None else []
    rest += ["solarize"] if p.solarize else []
    return (*lines, *([", ".join(rest)] if rest else []))
