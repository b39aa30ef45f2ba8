"""Each row of the table in docs/data.md: a file of that kind, made by an encoder, and what is read of it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from barlowtwins.data.channels import open_channels
from barlowtwins.data.images import FORMATS, Unreadable, read_image

PAGE = Path(__file__).parent.parent / "docs" / "data.md"
ROWS = re.findall(r"^\| (\w+) \| (.+?) \| (\d+) \| (.+?) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
Array = npt.NDArray[Any]


def test_the_table_is_there() -> None:
    assert len(ROWS) > 30


def values_of(pixel: str, bits: int) -> Array:
    """Values of a picture: smooth, so that lossy formats keep it."""
    y, x = np.mgrid[:32, :48]
    grey = (x * 3 + y * 3) / (47 * 3 + 31 * 3)  # 0 to 1
    kind = pixel.partition(",")[0]
    count = {"RGB": 3, "RGBA": 4}.get(kind) or (int(kind.split()[0]) if kind.endswith("samples") else 0)
    unit = np.stack([grey * (1 - 0.05 * c) for c in range(count)], -1) if count else grey
    if "float" in pixel or (bits == 32 and "signed" not in pixel):
        return (unit * 80 - 30).astype(f"f{bits // 8}")
    if "signed" in pixel:
        return (unit * 2 ** (bits - 1) - 2 ** (bits - 2)).astype(f"i{bits // 8}")
    if bits == 1:
        return unit > 0.5
    return np.rint(unit * (2**bits - 1)).astype(f"u{bits // 8}")


def encode(format: str, pixel: str, bits: int, values: Array) -> bytes:
    file = io.BytesIO()
    if format == "TIFF":
        tifffile = pytest.importorskip("tifffile")
        photometric = "rgb" if pixel.startswith("RGB") else "miniswhite" if "white" in pixel else "minisblack"
        planar = {"planarconfig": "contig"} if values.ndim == 3 else {}
        tifffile.imwrite(file, values, photometric=photometric, **planar)
    elif format == "HEIC":
        pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(values)).save(file, quality=95)
    elif format == "PNG" and pixel == "RGB" and bits == 16:
        cv2 = pytest.importorskip("cv2")
        return bytes(cv2.imencode(".png", values[..., ::-1])[1])
    elif format == "PGM":
        file.write(b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes())
    else:
        if format.upper() not in FORMATS:
            pytest.skip(f"this Pillow does not write {format}")
        image = Image.fromarray(values)
        image = image.convert("P") if pixel == "palette" else image
        lossless: dict[str, Any] = {"lossless": True, "exact": True}
        options = {"JPEG": {"quality": 98}, "WebP": lossless}.get(format, {})
        image.save(file, format, **options)
    return file.getvalue()


def spread(values: Array) -> Array:
    exact = values.astype(np.float64)
    return (exact - exact.min()) / (exact.max() - exact.min()) * 255


def on_white(values: Array) -> Array:
    opaque = values[..., 3:] / 255
    return values[..., :3] * opaque + 255 * (1 - opaque)


SEEN: dict[str, tuple[Callable[[Array], Array], float]] = {
    "the levels": (lambda v: v, 0),
    "the levels, lossy": (lambda v: v, 12),
    "the levels on white": (on_white, 0.51),
    "the colors of the palette": (lambda v: v, 0),
    "black and white": (lambda v: v * 255, 0),
    "value / 257, rounded": (lambda v: v / 257, 0.51),
    "the upper 8 bits": (lambda v: v >> 8, 0),
    "the inverse": (lambda v: 255 - v.astype(float), 0),
    "the inverse of value / 257, rounded": (lambda v: 255 - v / 257, 0.51),
    "least to greatest value as 0 to 255": (spread, 0.51),
}


@pytest.mark.parametrize(("format", "pixel", "bits", "sees"), ROWS, ids=[" ".join(row[:3]) for row in ROWS])
def test_each_row(format: str, pixel: str, bits: str, sees: str, tmp_path: Path) -> None:
    values = values_of(pixel, int(bits))
    path = tmp_path / "x.tif"  # read by its content
    path.write_bytes(encode(format, pixel, int(bits), values))
    image = read_image(path)
    if sees.startswith("refused"):
        assert isinstance(image, Unreadable) and "channels:FOLDER" in image.why
        assert open_channels(f"channels:{tmp_path}").channels == int(sees.split()[-2])
        return
    assert isinstance(image, Image.Image), image
    wanted, tolerance = SEEN[sees]
    expected = wanted(values).astype(np.float64)
    found = np.asarray(image).astype(np.float64)
    expected = expected[..., None] if expected.ndim == 2 else expected
    assert np.abs(found - expected).max() <= tolerance
