"""TIFF images that Pillow does not read, or reads wrong: through tifffile, the extra `tiff`.

Pillow has 8 bits, and 16-bit, 32-bit and float32 in grey. Other numbers of samples, 16 bits or floats a color, float16
and float64, and most big-endian and inverted grey of more than 8 bits go through tifffile.
"""

# H x W height and width, C samples of a pixel

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

__all__ = ["TiffLayout", "invert", "layout_of", "read_pages"]

HAS_TIFFFILE = importlib.util.find_spec("tifffile") is not None
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # photometric interpretations
ALPHA = (1, 2)  # kinds of extra samples
MOST_BYTES = 2_000_000_000  # of one file's pixels


@dataclass(frozen=True)
class TiffLayout:
    """What the tags of the first page say."""

    width: int
    height: int
    bits: int
    """Of a sample."""
    samples: int
    """C."""
    kind: str
    """"u" unsigned, "i" signed, "f" floating."""
    photometric: int
    alpha: bool
    """Whether the last sample is transparency."""
    orientation: int = 1
    planes: bool = False
    """Whether each sample is a plane of its own."""

    @property
    def colors(self) -> int:
        """C without transparency."""
        return self.samples - self.alpha

    @property
    def is_grey(self) -> bool:
        """One value a pixel, perhaps with transparency."""
        return self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and self.colors == 1

    @property
    def is_rgb(self) -> bool:
        """Three colors, perhaps with transparency or further samples."""
        return self.photometric == RGB and self.colors >= 3

    @property
    def is_picture(self) -> bool:
        """Whether it is grey, RGB or another color space, not a stack of bands."""
        return self.is_grey or self.is_rgb or self.photometric > RGB

    @property
    def pillow_is_exact(self) -> bool:
        """Whether Pillow gives the pixels as they are, or as this package documents."""
        if self.photometric > RGB:
            return True  # palette, CMYK, YCbCr, CIELAB: Pillow's, or nobody's
        if self.photometric == WHITE_IS_ZERO and self.bits > 8:
            return False
        if self.is_grey:
            return (self.bits <= 16 and self.kind != "f") or (self.bits, self.kind) in ((32, "i"), (32, "f"))
        exact = self.bits == 8 or (self.bits == 16 and not self.planes)
        return self.is_rgb and self.kind == "u" and exact and self.samples <= 4

    def __str__(self) -> str:
        kind = {"u": "unsigned", "i": "signed", "f": "floating-point"}[self.kind]
        return f"TIFF of {self.samples} x {self.bits} bits, {kind}"


def layout_of(file: BinaryIO) -> TiffLayout | None:
    """The layout of a TIFF file; None of any other, or where its tags cannot be read. The file is rewound."""
    file.seek(0)
    header = file.read(8)
    if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        file.seek(0)
        return None
    header += file.read(8) if header[2:3] == b"+" or header[3:4] == b"+" else b""
    try:
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        samples = int(tags.get(277, 1))
        bits, formats = tags.get(258, (1,)), tags.get(339, (1,))
        extra = tags.get(338, ())
        return TiffLayout(
            int(tags[256]),
            int(tags[257]),
            int(bits[0]),
            samples,
            {2: "i", 3: "f"}.get(int(formats[0]), "u"),
            int(tags.get(262, 1)),
            bool(extra) and int(extra[-1]) in ALPHA,
            int(tags.get(274, 1)),
            int(tags.get(284, 1)) == 2,
        )
    except Exception:  # noqa: BLE001 - damaged tags fail in any way; Pillow then says how
        return None
    finally:
        file.seek(0)


def read_pages(file: BinaryIO, layout: TiffLayout, *, first: bool = False) -> npt.NDArray[np.generic]:
    """All samples, (H, W, C), of all pages or the first one: of several pages of one sample each is a channel.

    Raises:
        OSError: tifffile is not installed or cannot read it, or its pages are more than one image.
    """
    if not HAS_TIFFFILE:
        raise OSError(f"a {layout}; pip install 'barlowtwins[tiff]' reads it")
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            pages = [tiff.pages[0]] if first else list(tiff.pages)
            if sum(page.nbytes for page in pages) > MOST_BYTES:
                raise OSError(f"a {layout}, too large: {layout.width} x {layout.height} on {len(pages)} pages")
            if len(pages) > 1 and layout.samples > 1:
                raise OSError(f"{len(pages)} pages of {layout.samples} samples each; save one page, or a sample a page")
            arrays = [_samples_last(page) for page in pages]
    except OSError:
        raise
    except Exception as error:  # its parsers fail in many ways on damaged files
        raise OSError(f"a {layout} that tifffile cannot read: {' '.join(str(error).split())}") from error
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        raise OSError("its pages differ in size or depth")
    joined = np.concatenate(arrays, -1)
    joined = joined.astype(joined.dtype.newbyteorder("="))
    return invert(joined) if layout.photometric == WHITE_IS_ZERO else joined


def invert(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Black for white: unsigned values from the top of their type, others within their own finite range."""
    if values.dtype.kind == "u":
        return np.asarray(_top(values) - values.astype(np.float64)).astype(values.dtype)
    finite = values[np.isfinite(values)]
    total = finite.min().astype(np.float64) + finite.max() if finite.size else 0.0
    return np.asarray(total - values.astype(np.float64)).astype(values.dtype)


def _top(values: npt.NDArray[np.generic]) -> float:
    return float(2 ** (8 * values.dtype.itemsize) - 1)


def _samples_last(page: Any) -> npt.NDArray[np.generic]:
    """(H, W, C) of one page."""
    array = np.asarray(page.asarray())
    if page.samplesperpixel == 1:
        return array.reshape(page.imagelength, page.imagewidth, 1)
    if page.planarconfig == 2:  # a plane a sample
        array = np.moveaxis(array.reshape(page.samplesperpixel, page.imagelength, page.imagewidth), 0, -1)
    return array.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
