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
| 16 bits a color | the upper eight |
| TIFF with white as zero | inverted |
| 32-bit integer grey | as 16-bit if all values lie in 0..65535, else its minimum..maximum scaled to 0..255 |
| floating-point grey | its finite minimum..maximum scaled to 0..255; NaN and -inf black, +inf white, constant black |
| floating-point or 32-bit color | as grey, with one range for all three colors |
| TIFF with 2, 4, 5, ... samples that are no color space | refused: `channels:FOLDER` reads them, see `channels` |
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

from barlowtwins.data import tiff

try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow before 11.3
    AvifImagePlugin = None  # type: ignore[assignment]

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Header",
    "Unreadable",
    "look",
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

SHORT_TEXT = 1 << 16  # bytes of XMP in a PNG file, which may tell an orientation
MOST_SAMPLES = 16  # of a pixel of a TIFF picture
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
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image | Unreadable:
    """Read one image as upright RGB, by the rules at the top of this module.

    Args:
        source: a path, the bytes of a file, a binary file object, which is read to its end, or a PIL image, which may
            be opened and not yet loaded; it stays as it is.
        max_pixels: larger images are refused from their header, before any pixel is decoded.

    Returns:
        A plain image of mode RGB, in memory and tied to no file; or `Unreadable`. Damaged, missing, oversized and
        foreign files never raise. Pillow's global settings stay as they are and its warnings stay inside.
    """
    name = _name(source)
    try:
        with _pillow_warnings_off, ExitStack() as stack:
            if isinstance(source, Image.Image):
                return _plain(_loaded(source))
            file = stack.enter_context(_open(source))
            if not file.read(1):
                return Unreadable(name, "the file is empty")
            layout = tiff.layout_of(file)
            if layout is not None and not layout.pillow_is_exact:
                return _turn(_tiff_picture(file, layout, max_pixels), layout.orientation)
            image = stack.enter_context(_decoder_of(file, max_pixels))
            if image.width * image.height > max_pixels:
                return Unreadable(name, f"{image.width} x {image.height} pixels are more than {max_pixels:,}")
            image.load()
            if image.format == "PNG":
                if not _png_is_whole(file):
                    return Unreadable(name, "the PNG file is cut before its end")
                _mend_transparency(image, file)
            return _plain(image)
    except UnidentifiedImageError:
        return Unreadable(name, f"not an image ({', '.join(FORMATS)}), or cut within its header")
    except _DECODING_ERRORS as error:
        return Unreadable(name, _reason(error))


def is_plain(image: Image.Image) -> bool:
    """Whether a PIL image is in memory, tied to no file, and asks for no turning."""
    return type(image) is Image.Image and _orientation(image) not in _TURNS


def _loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels in memory, which may have been opened and not read."""
    try:
        image.load()
    except AttributeError:  # how Pillow fails where it let go of the file
        raise OSError("its file is closed") from None
    return image


def _plain(image: Image.Image) -> Image.Image:
    """Upright, RGB, without anything else."""
    upright = _turn(to_rgb(image), _orientation(image))
    plain = upright.copy() if upright is image else upright
    if type(plain) is not Image.Image:
        plain = Image.frombytes(plain.mode, plain.size, plain.tobytes())
    plain.info.clear()  # an orientation left here would be applied a second time by whoever asks for it
    return plain


@dataclass(frozen=True)
class Header:
    """What is in an image file, before this package makes RGB of it."""

    format: str
    mode: str
    """Pillow's, such as "RGB" or "I;16"; of TIFF files that tifffile reads, such as "5 x 16 bits"."""
    bits: int
    """Of a channel."""
    top: int | None = None
    """The greatest value, of 16-bit images."""


def look(data: bytes) -> Header | None:
    """The format, mode and depth of an image file, and the greatest value of 16 bits; None if it is not an image."""
    try:
        with _pillow_warnings_off:
            file = io.BytesIO(data)
            layout = tiff.layout_of(file)
            if layout is not None and not layout.pillow_is_exact:
                return Header("TIFF", f"{layout.samples} x {layout.kind}{layout.bits}", layout.bits)
            with _decoder_of(file) as image:
                format, mode = image.format or "", image.mode
                bits = {"1": 1, "I": 32, "F": 32}.get(mode, 16 if mode.startswith("I;16") else 8)
                bits = _png_depth(file) if format == "PNG" else layout.bits if layout is not None else bits
                top = None
                if bits == 16:
                    values = np.asarray(image)
                    top = int(values.max()) * (1 if values.dtype.itemsize > 1 else 257)
                return Header(format, mode, bits, top)
    except _DECODING_ERRORS:
        return None


def upright(file: IO[bytes]) -> bool:
    """Whether the header of an image asks for no turning; False also where it cannot be read."""
    try:
        with _pillow_warnings_off, Image.open(file, formats=FORMATS) as image:
            return _orientation(image) not in _TURNS
    except _DECODING_ERRORS:
        return False


def read_array(
    path: str | os.PathLike[str], *, many: bool = False, axis: str = ""
) -> npt.NDArray[np.generic] | Unreadable:
    """Read one image with all its channels and bits, as `barlowtwins.data.channels` wants it.

    Args:
        path: of a .npy file, whose array is (H, W) or (H, W, C); or of an image by its content: of several grey pages
            of one size (TIFF) each is a channel; grey of any depth is one; all else is RGB as `read_image` has it.
        many: the .npy file holds N images, (N, H, W) or (N, H, W, C).
        axis: of the channels of a .npy file: "first", "last", or "" for what its shape tells.

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
            if not (array.ndim == 3 + many and array.size > 0 and array.dtype.kind in "uif"):
                return Unreadable(name, f"the array is {given}, not {'N x ' * many}H x W x C of numbers")
            return channels_last(array, axis) if given.count("x") == 2 + many else array
        with _pillow_warnings_off, _open(path) as file, ExitStack() as stack:
            layout = tiff.layout_of(file)
            if layout is not None and layout.width * layout.height * layout.samples > MAX_PIXELS:
                return Unreadable(name, f"{layout.width} x {layout.height} x {layout.samples} values are too many")
            if layout is not None and _needs_all_samples(layout):
                return _over_white(tiff.read_pages(file, layout)) if layout.alpha else tiff.read_pages(file, layout)
            image = stack.enter_context(_decoder_of(file))
            frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            if image.width * image.height * frames > MAX_PIXELS:
                return Unreadable(
                    name, f"{frames} x {image.width} x {image.height} values are more than {MAX_PIXELS:,}"
                )
            if image.mode not in ("L", "F") and not image.mode.startswith("I"):
                if image.format == "PNG" and _png_depth(file) == 16:
                    return _png_of_16_bits(file)
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


def channels_last(array: npt.NDArray[np.generic], axis: str = "") -> npt.NDArray[np.generic]:
    """(..., H, W, C) of an array whose channels come first or last, as `axis` or its shape tells.

    Raises:
        ValueError: the shape can be read in two ways.
    """
    first, rows, last = array.shape[-3:]
    shape = "x".join(map(str, array.shape))
    if not axis:
        if last < min(first, rows) or (last in (1, 3, 4) and first not in (1, 3, 4)):
            axis = "last"
        else:
            raise ValueError(
                f"an array of {shape} can be {first} x {rows} pixels of {last} channels, or {rows} x {last} of "
                f"{first}; say which: channels_last: or channels_first: before the path"
            )
    return np.moveaxis(array, -3, -1) if axis == "first" else array


def _needs_all_samples(layout: tiff.TiffLayout) -> bool:
    """Whether Pillow would give fewer channels or bits than a TIFF file has, or not read it."""
    if layout.photometric > tiff.RGB:
        return False
    if layout.samples == 1:
        return not layout.pillow_is_exact
    return not (layout.bits == 8 and layout.kind == "u" and layout.is_picture and layout.colors in (1, 3))


def _tiff_picture(file: BinaryIO, layout: tiff.TiffLayout, max_pixels: int) -> Image.Image:
    """The RGB image of a TIFF file that Pillow does not read exactly."""
    if not layout.is_picture:
        raise OSError(f"a {layout}, which is no picture; channels:FOLDER reads all its channels")
    if layout.width * layout.height > max_pixels:
        raise OSError(f"{layout.width} x {layout.height} pixels are more than {max_pixels:,}")
    if layout.samples > MOST_SAMPLES:
        raise OSError(f"a {layout}; channels:FOLDER reads so many")
    values = _inverted_by_pillow(file, layout)
    if values is None:
        file.seek(0)
        values = tiff.read_pages(file, layout, first=True)  # (H, W, C)
    if layout.alpha:
        values = _over_white(values)
    if layout.is_rgb and values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)  # type: ignore[operator]
    levels = values if values.dtype == np.uint8 else _scaled_to_8_bit(values)
    return Image.fromarray(np.ascontiguousarray(levels[..., :3] if layout.is_rgb else levels[..., 0])).convert("RGB")


def _inverted_by_pillow(file: BinaryIO, layout: tiff.TiffLayout) -> npt.NDArray[np.generic] | None:
    """Grey with white as zero, which Pillow reads in some depths and leaves as it is; None of any other."""
    if layout.photometric != tiff.WHITE_IS_ZERO or layout.samples != 1:
        return None
    try:
        with Image.open(file, formats=("TIFF",)) as image:
            values = np.asarray(image)
    except UnidentifiedImageError:
        return None
    return tiff.invert(values.astype(values.dtype.newbyteorder("=")))[..., None]


def _over_white(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(H, W, C) of (H, W, C + 1), whose last channel is how opaque a pixel is."""
    top = float(np.iinfo(str(values.dtype)).max) if values.dtype.kind in "ui" else 1.0
    exact = values.astype(np.float64)
    opaque = exact[..., -1:] / top
    mixed = exact[..., :-1] * opaque + top * (1 - opaque)
    return (np.rint(mixed) if values.dtype.kind in "ui" else mixed).astype(values.dtype)


def _png_depth(file: BinaryIO) -> int:
    """Bits of a channel of a PNG file."""
    file.seek(24)
    return file.read(1)[0]


def _png_of_16_bits(file: BinaryIO) -> npt.NDArray[np.generic]:
    """A color PNG with all its bits, (H, W, 3), of which Pillow gives the upper eight."""
    try:
        import cv2
    except ImportError:
        raise OSError("a PNG of 16 bits a color; pip install 'barlowtwins[fast]' reads all of them") from None
    file.seek(0)
    values = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise OSError("a damaged PNG image")
    if values.ndim == 2 or values.shape[2] == 2:
        raise OSError("a PNG of 16 bits with transparency in grey; save it without transparency")
    ordered = values[..., [2, 1, 0, *range(3, values.shape[2])]]
    return _over_white(ordered) if values.shape[2] == 4 else ordered


def _mend_transparency(image: Image.Image, file: BinaryIO) -> None:
    """Bring the transparent color of a PNG file to the levels that Pillow gives its pixels."""
    color, depth = image.info.get("transparency"), _png_depth(file)
    if depth == 16 and isinstance(color, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in color)
    elif depth in (2, 4) and isinstance(color, int) and image.mode == "L":
        image.info["transparency"] = color * 255 // (2**depth - 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB by the rules at the top of this module, orientation apart.

    Returns:
        An image of mode RGB; `image` itself if there is nothing to convert.

    Raises:
        ValueError: Pillow knows no way from the image's mode to RGB.
    """
    if image.mode == "F" or image.mode.startswith("I"):  # I, I;16, I;16B, ...
        values = np.asarray(image)
        levels = _scaled_to_8_bit(values)
        if isinstance(color := image.info.get("transparency"), int):
            levels[values == color] = 255
        return Image.fromarray(levels).convert("RGB")
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


def _decoder_of(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
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
    try:
        image = Image.open(file, formats=FORMATS)
        if start[:8] == PNG_START and image.width * image.height <= max_pixels:
            image.load()  # texts may follow the pixels
        return image
    except ValueError as error:
        if start[:8] != PNG_START or ("MAX_TEXT" not in str(error) and "text chunks" not in str(error)):
            raise
    file.seek(0)
    return Image.open(io.BytesIO(_without_text(file.read())), formats=FORMATS)


PNG_START = b"\x89PNG\r\n\x1a\n"


def _without_text(png: bytes) -> bytes:
    """A PNG file without texts and color profile, which Pillow refuses where they are long; orientations stay."""
    kept, place = [png[:8]], 8
    while place + 8 <= len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        chunk = png[place : place + 12 + length]
        orientation = kind == b"iTXt" and chunk[8:].startswith(b"XML:com.adobe.xmp\0\0") and length < SHORT_TEXT
        if orientation or kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(chunk)
        place += 12 + length
    return b"".join(kept)


@functools.cache
def _register_heif(pillow_heif: Any) -> None:
    pillow_heif.register_heif_opener(thumbnails=False)


def _name(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "<image>")
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
