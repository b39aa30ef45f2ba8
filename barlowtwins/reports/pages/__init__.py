"""Pages: one HTML file each that opens from a disk, asks no network for anything, and is dark or light as one likes.

Whatever comes from outside (paths, class names, settings) passes `text` or `json_block`; the page's own policy forbids
every request besides.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["base64_of", "json_block", "page", "picture", "picture_uri", "shipped", "text"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
LOSSLESS = 64  # pixels: pictures up to this side are PNG, so that drawn pixels stay pixels


def text(value: object) -> str:
    """`value` as text of a page, in an element or an attribute; bytes that are no UTF-8 are spelt out."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode(), quote=True)


def json_block(name: str, value: Any) -> str:
    """A `<script type="application/json" id=name>` that no text inside can end early."""
    made = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        made = made.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{text(name)}">{made}</script>'


def base64_of(array: npt.NDArray[Any]) -> str:
    """The bytes of an array, little-endian, for a typed array in a page."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).decode("ascii")


def picture_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """(H, W, 3) as a data: URI."""
    file = io.BytesIO()
    small = max(pixels.shape[:2]) <= LOSSLESS
    Image.fromarray(pixels).save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def picture(pixels: npt.NDArray[np.uint8], description: str, classes: str = "") -> str:
    """(H, W, 3) as an `<img>`; `description` is read aloud and shown when hovering."""
    height, width = pixels.shape[:2]
    said = text(description)
    return (
        f'<img class="{text(classes)}" src="{picture_uri(pixels)}" width="{width}" height="{height}" '
        f'alt="{said}" title="{said}">'
    )


def shipped(name: str) -> str:
    """The text of a file beside this module."""
    return (importlib.resources.files(__package__) / name).read_text("utf-8")


def page(title: str, body: str, *, styles: Sequence[str] = (), script: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML.
        styles: names of shipped style sheets, after the common one.
        script: the name of a shipped script, run when the body is there; none if empty.
    """
    style = "\n".join(shipped(name) for name in ("page.css", *styles))
    code = f"<script>\n{shipped(script)}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{text(title)}</title>\n<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n'
        f"<body>\n{body}\n{code}</body>\n</html>\n"
    )
