"""JPEG files as arrays, by the quicker of two readers; whatever is unusual goes to `images`, which has the last word.

simplejpeg hands libjpeg-turbo's pixels over as they are. Pillow runs the same library with the same settings and puts
them into an image first, so the levels are equal. Taken are whole files in grey or YCbCr that lie upright; a file that
is damaged, turned, CMYK or no JPEG is read by `read_image`, with the same result and the same words as ever.
"""

from __future__ import annotations

import dataclasses
import io
import os

import numpy as np
import numpy.typing as npt
from PIL import Image

from barlowtwins.core.errors import MissingExtraError
from barlowtwins.data.images import MAX_PIXELS, Unreadable, read_image, upright

__all__ = ["read_pixels", "require_simplejpeg"]

START = b"\xff\xd8"
ABOUT = (b"Exif\0\0", b"http://ns.adobe.com/xap/")  # where an orientation may be told


def require_simplejpeg() -> None:
    """Raises MissingExtraError where simplejpeg is not installed."""
    try:
        import simplejpeg  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError("simplejpeg", "fast") from None


def read_pixels(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8] | Unreadable:
    """One image file as upright RGB, (H, W, 3) uint8, or why it cannot be had; as `read_image` reads it."""
    name = os.fspath(path)
    if not os.path.isfile(name):  # named pipes and the like are told apart there
        return _as_array(read_image(path))
    try:
        with open(name, "rb") as file:
            data = file.read()
    except OSError:
        return _as_array(read_image(path))
    pixels = _decode(data) if data[:2] == START else None
    if pixels is not None:
        return pixels
    read = read_image(data)
    return dataclasses.replace(read, path=name) if isinstance(read, Unreadable) else np.asarray(read)


def _as_array(read: Image.Image | Unreadable) -> npt.NDArray[np.uint8] | Unreadable:
    return read if isinstance(read, Unreadable) else np.asarray(read)


def _decode(data: bytes) -> npt.NDArray[np.uint8] | None:
    """The pixels of a whole and usual JPEG file; None of any other."""
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS or colours not in ("YCbCr", "Gray"):
            return None
        if any(mark in data for mark in ABOUT) and not upright(io.BytesIO(data)):
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError:  # damaged in any way, of which Pillow forgives some
        return None
