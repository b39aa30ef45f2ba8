"""Pictures in rows and columns with words under each, by Pillow alone; and `augment`, which draws views that way."""

# s side of a tile in pixels

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from barlowtwins.augment import TwinTransform
from barlowtwins.augment_batched import make_views
from barlowtwins.augment_pillow import apply_view
from barlowtwins.config import AugmentConfig, PretrainConfig
from barlowtwins.data import open_source, subset
from barlowtwins.draw import pack_views
from barlowtwins.errors import UsageError
from barlowtwins.files import atomic_write
from barlowtwins.images import Unreadable
from barlowtwins.preprocess import as_image
from barlowtwins.recipes import resolve
from barlowtwins.views import AugmentRecipe, ViewParameters, augmentation, draw_views, rng_for

__all__ = ["AugmentResult", "Tile", "augment", "describe", "draw_sheet", "require_picture", "write_sheet"]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
GAP, MARGIN = 12, 16  # pixels
LETTER = 13  # pixels
SIDE = 208  # of a view: the drawn parameters fit below it
PAPER, INK, SOFT, ACCENT = (255, 255, 255), (27, 31, 39), (91, 100, 114), (37, 99, 235)
JITTER = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Tile:
    """A picture and what stands under it."""

    image: Image.Image | None
    """None: a grey square."""
    lines: tuple[str, ...] = ()
    """The first one is darker; each is cut to the tile's width."""
    marked: bool = False
    """Framed, as the one that the others are compared with."""


def draw_sheet(rows: Sequence[Sequence[Tile]], *, title: str = "", side: int = 160) -> Image.Image:
    """Draw rows of tiles.

    Args:
        rows: their tiles, from left to right.
        title: above them; none if empty.
        side: of a tile in pixels. A picture fills it, small ones enlarged without smoothing, so that pixels are seen.
    """
    font, line = ImageFont.load_default(LETTER), LETTER + 5
    across = max((len(row) for row in rows), default=0)
    heights = [side + line * max((len(tile.lines) for tile in row), default=0) + GAP for row in rows]
    head = 2 * line if title else 0
    sheet = Image.new(
        "RGB", (2 * MARGIN + max(1, across) * (side + GAP) - GAP, 2 * MARGIN + head + sum(heights)), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, MARGIN), _cut(title, font, sheet.width - 2 * MARGIN), INK, font)
    top = MARGIN + head
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = MARGIN + column * (side + GAP)
            _place(sheet, tile.image, left, top, side)
            if tile.marked:
                draw.rectangle((left - 3, top - 3, left + side + 2, top + side + 2), outline=ACCENT, width=3)
            for i, words in enumerate(tile.lines):
                at = (left, top + side + 3 + i * line)
                draw.text(at, _cut(words, font, side + GAP - 4), SOFT if i else INK, font)
        top += height
    return sheet


def _place(sheet: Image.Image, image: Image.Image | None, left: int, top: int, side: int) -> None:
    if image is None:
        sheet.paste((200, 205, 212), (left, top, left + side, top + side))
        return
    scale = min(side / image.width, side / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    sheet.paste(
        image.convert("RGB").resize(size, resample), (left + (side - size[0]) // 2, top + (side - size[1]) // 2)
    )


def _cut(words: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> str:
    """As much of a line as fits, with an ellipsis where something is left out; control characters spelt out."""
    words = words.encode("utf-8", "backslashreplace").decode()
    words = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words[:400])
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "...") > width:
        words = words[:-1]
    return words + "..."


def require_picture(path: str) -> None:
    """Raise UsageError now if no picture can be written under this name."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(f"{path} does not say what kind of picture it is; end it with one of {', '.join(FORMATS)}")


def write_sheet(path: str, sheet: Image.Image) -> None:
    """Write a picture in the format that its name says.

    Raises:
        UsageError: the name says none.
        OutputError: it cannot be written.
    """
    require_picture(path)
    with atomic_write(path) as file:
        sheet.save(file, FORMATS[Path(path).suffix.lower()])


@dataclass(frozen=True)
class AugmentResult:
    """What `augment` drew."""

    out: str
    augmentation: AugmentRecipe
    images: int
    """Shown; an unreadable one has an empty tile."""
    views: int
    """Of all images together."""

    def summary(self) -> str:
        recipe = self.augmentation
        return f"{self.out}: {self.images} images, {self.views} views of {recipe.size} x {recipe.size} ({recipe.name})"


def augment(config: AugmentConfig) -> AugmentResult:
    """Draw images and their views, as pretraining with this seed makes them, with the drawn parameters under each.

    Each image has two rows: its views by Pillow's executor, and the same ones by the batched executor.

    Raises:
        DataError: no such data.
        ConfigError: an unknown augmentation.
        OutputError: the picture cannot be written.
    """
    require_picture(config.out)
    source = open_source(config.data, split=config.split, data_root=config.data_root)
    name = config.augmentation
    if name == "auto":
        flags = PretrainConfig(config.data, "", image_size=config.image_size)
        name = resolve(flags, channels=source.channels, size=source.size).augmentation
    recipe = TwinTransform(augmentation(name), size=config.image_size, channels=source.channels).recipe
    shown = np.unique(np.linspace(0, len(source) - 1, min(config.images, len(source))).round().astype(np.int64))
    picked = subset(source, shown)

    rows, views = [], 0
    for place, index in enumerate(shown.tolist()):
        read = picked.read(place)
        if isinstance(read, Unreadable):
            rows.append([Tile(None, (source.key(index), f"unreadable: {read.why}"), marked=True)])
            continue
        image = as_image(read, recipe.channels)
        row = [Tile(image, (source.key(index), f"{image.width} x {image.height}", "views by pillow"), marked=True)]
        below = [Tile(image, ("views by batched",))]
        for epoch in range(config.epoch, config.epoch + config.pairs):
            pair = draw_views(recipe, image.width, image.height, rng_for(config.seed, epoch, index))
            for view, parameters in enumerate(pair):
                lines = (f"epoch {epoch + 1}, view {view + 1}", *describe(parameters))
                row.append(Tile(apply_view(image, parameters, recipe), lines))
                views += 1
            below += _batched_tiles(image, pair, recipe)
        rows += [row, below]
    title = f"{recipe.name}: {config.data}, views of {recipe.size} x {recipe.size}, seed {config.seed}"
    write_sheet(config.out, draw_sheet(rows, title=title, side=SIDE))
    return AugmentResult(config.out, recipe, len(shown), views)


def _batched_tiles(
    image: Image.Image, pair: tuple[ViewParameters, ViewParameters], recipe: AugmentRecipe
) -> list[Tile]:
    """Both views by the batched executor, and how far they are from Pillow's."""
    levels = torch.from_numpy(np.array(image)).reshape(1, image.height, image.width, -1)
    shown = dataclasses.replace(recipe, mean=(0.0,) * recipe.channels, std=(1.0,) * recipe.channels)
    tiles = []
    for view, parameters in zip(make_views(levels, pack_views([pair]), shown), pair, strict=True):
        pixels = (view[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()  # (S, S, C)
        pixels = pixels[..., 0] if recipe.channels == 1 else pixels
        off = np.abs(pixels.astype(int) - np.asarray(apply_view(image, parameters, recipe))).mean()
        tiles.append(Tile(Image.fromarray(pixels), (f"differs by {off:.2f} of 255 levels",)))
    return tiles


def describe(parameters: ViewParameters) -> tuple[str, ...]:
    """Everything random about a view in short lines: crop and flip, each colour jitter in its order, the rest."""
    p = parameters
    lines = [f"crop {p.width} x {p.height} at {p.left}, {p.top}"]
    if p.jitter is not None:
        said = [f"{JITTER[i]} {p.jitter.factors[i]:{'+.2f' if i == 3 else '.2f'}}" for i in p.jitter.order]
        lines += [", ".join(said[:2]), ", ".join(said[2:])]
    rest = ["flip"] if p.flip else []
    rest += ["grey"] if p.grey else []
    rest += [f"blur {p.blur_sigma:.2f} px"] if p.blur_sigma is not None else []
    rest += ["solarise"] if p.solarize else []
    return (*lines, *([", ".join(rest)] if rest else []))
