"""Self-contained HTML pages: one file each, without network access, dark or light by preference.

All outside text (paths, class names, settings) must pass `text` or `json_block`; in addition, the content policy of the
page forbids all requests.
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

from barlowtwins.core.printing import escape_controls

__all__ = ["base64_of", "json_block", "page", "picture", "picture_uri", "shipped", "text"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
LOSSLESS = 64  # pixels; images up to this side are PNG, to keep pixels sharp


def text(value: object) -> str:
    """Escape `value` for an element or an attribute; bytes that are not UTF-8 become escapes."""
    return html.escape(escape_controls(str(value)).encode("utf-8", "backslashreplace").decode(), quote=True)


def json_block(name: str, value: Any) -> str:
    """Return a `<script type="application/json" id=name>` that its text cannot close."""
    made = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        made = made.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{text(name)}">{made}</script>'


def base64_of(array: npt.NDArray[Any]) -> str:
    """Return the little-endian bytes of an array in base64, for a typed array in a page."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).decode("ascii")


def picture_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """Return (H, W, 3) pixels as a data: URI."""
    file = io.BytesIO()
    small = max(pixels.shape[:2]) <= LOSSLESS
    Image.fromarray(pixels).save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def picture(pixels: npt.NDArray[np.uint8], description: str, classes: str = "") -> str:
    """Return (H, W, 3) pixels as an `<img>`; `description` is the alternative text and the tooltip."""
    height, width = pixels.shape[:2]
    said = text(description)
    return (
        f'<img class="{text(classes)}" src="{picture_uri(pixels)}" width="{width}" height="{height}" '
        f'alt="{said}" title="{said}">'
    )


def shipped(name: str) -> str:
    """Return the text of a file next to this module."""
    return (importlib.resources.files(__package__) / name).read_text("utf-8")


def page(title: str, body: str, *, styles: Sequence[str] = (), script: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text.
        body: HTML.
        styles: names of style sheets in this folder, after the common one.
        script: name of a script in this folder, run after the body; none if empty.
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
