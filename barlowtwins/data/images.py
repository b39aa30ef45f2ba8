"""One image file in, one upright RGB image out, or the reason why not. Nothing else in this package decodes.

A format is recognised by content, never by name, and only those of `FORMATS` are tried: the parsers of all others (EPS,
FITS, PSD, ...) never see the bytes. A file is either whole or `Unreadable`; no missing pixel is made up.

| in the file | becomes |
|---|---|
| several frames or pages | the first one (of an APNG its default image) |
| EXIF or XMP orientation | applied; damaged EXIF data count as none |
| transparency of any kind | composited on white |
| 1-bit, grey, palette, CMYK, YCbCr | Pillow's conversion to RGB; colour profiles are not applied |
| CIELAB | converted from D50 CIELAB to sRGB |
| 16-bit grey | 0..65535 scaled to 0..255 and rounded, not clipped |
| 32-bit integer grey | as 16-bit if all values lie in 0..65535, else its minimum..maximum scaled to 0..255 |
| floating-point grey | its finite minimum..maximum scaled to 0..255; NaN and -inf black, +inf white, constant black |
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import stat
import struct
import threading
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow before 11.3
    AvifImagePlugin = None  # type: ignore[assignment]

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Unreadable",
    "read_array",
    "read_image",
    "suffix_hint",
    "to_rgb",
    "upright",
]

# Pillow registers the last three only when their plugins are imported, as above; left to itself it would import all
# of its plugins at the first such file, in whatever thread meets it.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP") + (("AVIF",) if AvifImagePlugin else ())
"""Formats that are read; Pillow's names."""

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Of photos by phones, which pillow-heif reads (the extra `heif`)."""
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None

_SUFFIXES = "jpg jpeg jpe jfif png apng gif bmp webp avif tif tiff ppm pgm pbm pnm"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split()) | (HEIF_SUFFIXES if HAS_HEIF else frozenset())
"""Suffixes, in lower case, by which listings tell images from other files. The content decides how one is read."""

MAX_PIXELS = 178_956_970
"""Most pixels, width times height, that are decoded unless told otherwise: half a gigabyte as RGB. Pillow refuses
more than this by default too, so a higher `max_pixels` needs a higher `PIL.Image.MAX_IMAGE_PIXELS` as well."""


def suffix_hint(suffix: str) -> str:
    """What brings files of this suffix (".heic"), if an extra does; else empty."""
    if suffix in HEIF_SUFFIXES and not HAS_HEIF:
        return f"pip install 'barlowtwins[heif]' reads {suffix}"
    return ""


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read: a value that takes the image's place, not an exception."""

    path: str
    """The file as it was named, or what stood in its place (`<bytes>`)."""
    why: str
    """The reason, in a few words."""


_DECODING_ERRORS = (
    # what Pillow raised when it read some 200,000 files with random damage ...
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,  # AVIF
    Image.DecompressionBombError,
    # ... and what its parsers can raise besides
    EOFError,
    MemoryError,
    OverflowError,
    struct.error,
    ImportError,  # CIELAB where Pillow was built without LittleCMS
)


def read_image(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes], *, max_pixels: int = MAX_PIXELS
) -> Image.Image | Unreadable:
    """Read one image as upright RGB, by the rules at the top of this module.

    Args:
        source: a path, the bytes of a file, or a binary file object, which is read to its end.
        max_pixels: larger images are refused from their header, before any pixel is decoded.

    Returns:
        A plain image of mode RGB, in memory and tied to no file; or `Unreadable`. Damaged, missing, oversized and
        foreign files never raise. Pillow's global settings stay as they are and its warnings stay inside.
    """
    name = _name(source)
    try:
        with _pillow_warnings_off, ExitStack() as stack:
            file = stack.enter_context(_open(source))
            if not file.read(1):
                return Unreadable(name, "the file is empty")
            image = stack.enter_context(_decoder_of(file))
            if image.width * image.height > max_pixels:
                return Unreadable(name, f"{image.width} x {image.height} pixels are more than {max_pixels:,}")
            image.load()
            if image.format == "PNG" and not _png_is_whole(file):
                return Unreadable(name, "the PNG file is cut before its end")
            upright = _turn(to_rgb(image), _orientation(image))
            plain = upright.copy() if upright is image else upright
            plain.info.clear()  # an orientation left here would be applied a second time by whoever asks for it
            return plain
    except UnidentifiedImageError:
        return Unreadable(name, f"not an image ({', '.join(FORMATS)}), or cut within its header")
    except _DECODING_ERRORS as error:
        return Unreadable(name, _reason(error))


def upright(file: IO[bytes]) -> bool:
    """Whether the header of an image asks for no turning; False also where it cannot be read."""
    try:
        with _pillow_warnings_off, Image.open(file, formats=FORMATS) as image:
            return _orientation(image) not in _TURNS
    except _DECODING_ERRORS:
        return False


def read_array(path: str | os.PathLike[str], *, many: bool = False) -> npt.NDArray[np.generic] | Unreadable:
    """Read one image with all its channels and bits, as `barlowtwins.data.channels` wants it.

    Args:
        path: of a .npy file, whose array is (H, W) or (H, W, C); or of an image by its content: of several grey pages
            of one size (TIFF) each is a channel; grey of any depth is one; all else is RGB as `read_image` has it.
        many: the .npy file holds N images, (N, H, W) or (N, H, W, C).

    Returns:
        (H, W, C), or (N, H, W, C), of an integer or floating type; or `Unreadable`.
    """
    name = os.fspath(path)
    try:
        if many or name.lower().endswith(".npy"):
            with _open(path) as file:
                array = np.load(file, allow_pickle=False)
            given = f"{'x'.join(map(str, array.shape))} of {array.dtype}"
            array = array[..., None] if array.ndim == 2 + many else array
            whole = array.ndim == 3 + many and array.size > 0 and array.dtype.kind in "uif"
            return (
                array if whole else Unreadable(name, f"the array is {given}, not {'N x ' * many}H x W x C of numbers")
            )
        with _pillow_warnings_off, _open(path) as file, Image.open(file, formats=FORMATS) as image:
            frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            if image.width * image.height * frames > MAX_PIXELS:
                return Unreadable(
                    name, f"{frames} x {image.width} x {image.height} values are more than {MAX_PIXELS:,}"
                )
            if image.mode not in ("L", "F") and not image.mode.startswith("I"):
                rgb = read_image(path)
                return rgb if isinstance(rgb, Unreadable) else np.asarray(rgb)
            pages = []
            for frame in range(frames):
                image.seek(frame)
                pages.append(np.asarray(image))
            if len({(page.shape, page.dtype) for page in pages}) > 1:
                return Unreadable(name, "its pages differ in size or depth")
            return np.stack(pages, -1)
    except UnidentifiedImageError:
        return Unreadable(name, f"not an image ({', '.join(FORMATS)}), or cut within its header")
    except _DECODING_ERRORS as error:
        return Unreadable(name, _reason(error))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB by the rules at the top of this module, orientation apart.

    Returns:
        An image of mode RGB; `image` itself if there is nothing to convert.

    Raises:
        ValueError: Pillow knows no way from the image's mode to RGB.
    """
    if image.mode == "F" or image.mode.startswith("I"):  # I, I;16, I;16B, ...
        return Image.fromarray(_scaled_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.has_transparency_data:
        layered = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layered, mask=layered.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled_to_8_bit(grey: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Scale (H, W) of 16-bit, 32-bit or floating-point grey to 0..255."""
    finite = grey[np.isfinite(grey)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if grey.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    with np.errstate(invalid="ignore"):  # casting a signalling NaN warns
        values = np.nan_to_num(grey.astype(np.float64), nan=low, posinf=high, neginf=low)
    if high == low:
        return np.zeros(grey.shape, np.uint8)
    return np.rint((values - low) / (high - low) * 255).astype(np.uint8)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, _lab_to_srgb())
    assert converted is not None  # only a transform in place returns nothing
    return converted


@functools.cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def _decoder_of(file: BinaryIO) -> Image.Image:
    """Pillow's image of a file, by its content; HEIF through its own package, which the first such file loads."""
    file.seek(0)
    start = file.read(12)
    file.seek(0)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        if not HAS_HEIF:
            raise OSError("a HEIF image; pip install 'barlowtwins[heif]' reads it")
        import pillow_heif

        with contextlib.suppress(UnidentifiedImageError):  # an AVIF image may call itself mif1, too
            _register_heif(pillow_heif)
            return Image.open(file, formats=("HEIF",))
        file.seek(0)
    return Image.open(file, formats=FORMATS)


@functools.cache
def _register_heif(pillow_heif: Any) -> None:
    pillow_heif.register_heif_opener(thumbnails=False)


def _name(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    return str(getattr(source, "name", "<file>"))


def _open(source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        return io.BytesIO(source.read())
    if not stat.S_ISREG(os.stat(source).st_mode):  # opening a named pipe would wait for ever
        raise OSError("not a regular file")
    # Pillow gets a file, not a path: it maps the pixels of a path into memory, and a mapped file that somebody
    # shortens kills the process that looks at it.
    return open(source, "rb")


def _png_is_whole(file: BinaryIO) -> bool:
    """Whether the chunks of a PNG file end in IEND. Pillow stops at the last pixel, short of the final checksums."""
    file.seek(8)  # past the signature
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return len(file.read(4)) == 4
        file.seek(length + 4, os.SEEK_CUR)  # the chunk's data and its checksum
    return False


def _orientation(image: Image.Image) -> int:
    """The EXIF or XMP orientation, 1 to 8, of a loaded image; 1 (upright) if there is none to be had."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DECODING_ERRORS:
        return 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what makes an image of this orientation upright (EXIF 2.3, tag 274)


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())


class _PillowWarningsOff:
    """Pillow's warnings are off while any thread is inside.

    `warnings.catch_warnings` in each call would not do: where two threads overlap, the first to leave restores the
    filters under the second, and the second to leave makes the first one's permanent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._before.__exit__(None, None, None)


_pillow_warnings_off = _PillowWarningsOff()
