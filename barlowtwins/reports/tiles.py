"""Draws images in rows and columns with text under each, with Pillow."""

# s side of a tile in pixels

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from barlowtwins.core.errors import UsageError
from barlowtwins.core.files import atomic_write

__all__ = ["GAP", "LINE", "MARGIN", "Tile", "draw_sheet", "require_picture", "write_sheet"]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
GAP, MARGIN = 12, 16  # pixels
LETTER, LINE = 13, 18  # pixels
PAPER, INK, SOFT, ACCENT = (255, 255, 255), (27, 31, 39), (91, 100, 114), (37, 99, 235)


@dataclass(frozen=True)
class Tile:
    """An image and the text under it."""

    image: Image.Image | None
    """None: a gray square."""
    lines: tuple[str, ...] = ()
    """The first line is darker; each is cut to the width of the tile."""
    marked: bool = False
    """Whether it has a frame, as the reference for the others."""


def draw_sheet(rows: Sequence[Sequence[Tile]], *, title: str = "", side: int = 160) -> Image.Image:
    """Draw rows of tiles.

    Args:
        rows: tiles of each row, from left to right.
        title: title above the rows; none if empty.
        side: side of a tile in pixels. Images fill it; small images are enlarged without smoothing.
    """
    font = ImageFont.load_default(LETTER)
    across = max((len(row) for row in rows), default=0)
    heights = [side + LINE * max((len(tile.lines) for tile in row), default=0) + GAP for row in rows]
    head = 2 * LINE if title else 0
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
                at = (left, top + side + 3 + i * LINE)
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
    """Cut a line to the width, with an ellipsis if needed; control characters become escapes."""
    words = words.encode("utf-8", "backslashreplace").decode()
    words = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words[:400])
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "...") > width:
        words = words[:-1]
    return words + "..."


def require_picture(path: str) -> None:
    """Raise UsageError if the name does not end in a supported image format."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(f"{path} does not end in an image format; use one of {', '.join(FORMATS)}")


def write_sheet(path: str, sheet: Image.Image) -> None:
    """Write an image in the format of its suffix.

    Raises:
        UsageError: the suffix is not supported.
        OutputError: the file cannot be written.
    """
    require_picture(path)
    with atomic_write(path) as file:
        sheet.save(file, FORMATS[Path(path).suffix.lower()])
