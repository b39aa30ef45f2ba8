"""Pixels of unusual files, against the values that went into their encoder; and arrays that have two readings."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin

from barlowtwins.core.errors import DataError
from barlowtwins.data.channels import open_channels
from barlowtwins.data.images import Unreadable, read_array, read_image
from barlowtwins.data.open import open_source
from barlowtwins.data.preprocess import Preprocessing, as_image
from barlowtwins.data.sources import ArraySource

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
H, W = 6, 9


def values(dtype: str, samples: int = 0) -> npt.NDArray[Any]:
    shape = (H, W, samples) if samples else (H, W)
    if dtype[0] == "f":
        return RNG.normal(0, 50, shape).astype(dtype)
    info = np.iinfo(dtype)
    return RNG.integers(info.min, int(info.max) + 1, shape, dtype=dtype)


def tiff(array: npt.NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def pixels(image: Image.Image | Unreadable) -> npt.NDArray[np.int64]:
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


def scaled(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """0-255 of one range: 16 bits from 0 to 65535, others from their least to their greatest value."""
    exact = array.astype(np.float64)
    low, high = exact.min(), exact.max()
    if array.dtype.kind in "ui" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    return np.rint((exact - low) / (high - low) * 255)


class TestTIFF:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("white_is_zero", [False, True])
    @pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
    def test_grey_of_every_depth(self, dtype: str, white_is_zero: bool, order: str, tmp_path: Path) -> None:
        grey = values(dtype)
        data = tiff(grey, photometric="miniswhite" if white_is_zero else "minisblack", byteorder=order)
        shown = scaled(grey) if dtype != "u1" else grey.astype(np.float64)
        got = pixels(read_image(data))
        assert (got == got[..., :1]).all()
        np.testing.assert_allclose(got[..., 0], 255 - shown if white_is_zero else shown, atol=1)
        (tmp_path / "x.tif").write_bytes(data)
        array = read_array(tmp_path / "x.tif")
        assert not isinstance(array, Unreadable), array
        assert array.shape == (H, W, 1)
        if not white_is_zero:
            np.testing.assert_array_equal(array[..., 0].astype(grey.dtype), grey)
        elif dtype[0] == "u":
            np.testing.assert_array_equal(array[..., 0].astype(grey.dtype), np.iinfo(dtype).max - grey)
        else:
            assert np.corrcoef(array.astype(np.float64).ravel(), grey.astype(np.float64).ravel())[0, 1] < -0.999

    @pytest.mark.parametrize("planar", ["contig", "separate"])
    @pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f2", "f4"])
    def test_color_of_every_depth(self, dtype: str, planar: str, tmp_path: Path) -> None:
        color = values(dtype, 3)
        data = tiff(color if planar == "contig" else np.moveaxis(color, -1, 0), photometric="rgb", planarconfig=planar)
        wanted = {"u1": color, "u2": color >> 8 if dtype == "u2" else None}.get(dtype)
        np.testing.assert_allclose(pixels(read_image(data)), scaled(color) if wanted is None else wanted, atol=1)
        (tmp_path / "x.tif").write_bytes(data)
        np.testing.assert_array_equal(read_array(tmp_path / "x.tif"), color)

    @pytest.mark.parametrize("samples", [2, 4, 5, 13])
    @pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_bands_are_channels_and_no_picture(self, samples: int, dtype: str, planar: str, tmp_path: Path) -> None:
        bands = values(dtype, samples)
        given = bands if planar == "contig" else np.moveaxis(bands, -1, 0)
        (tmp_path / "x.tif").write_bytes(tiff(given, photometric="minisblack", planarconfig=planar))
        np.testing.assert_array_equal(read_array(tmp_path / "x.tif"), bands)
        picture = read_image(tmp_path / "x.tif")
        assert isinstance(picture, Unreadable) and f"TIFF of {samples} x" in picture.why
        assert picture.why.endswith("no picture; channels:FOLDER reads all its channels")
        source = open_channels(f"channels:{tmp_path}")
        assert (len(source), source.channels) == (1, samples)

    @pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
    def test_color_and_a_further_band(self, dtype: str, tmp_path: Path) -> None:
        bands = values(dtype, 4)
        (tmp_path / "x.tif").write_bytes(tiff(bands, photometric="rgb", extrasamples=["unspecified"]))
        np.testing.assert_array_equal(read_array(tmp_path / "x.tif"), bands)
        shown = {"u1": bands, "u2": bands >> 8 if dtype == "u2" else None}.get(dtype)
        wanted = scaled(bands) if shown is None else shown
        np.testing.assert_allclose(pixels(read_image(tmp_path / "x.tif")), wanted[..., :3], atol=1)

    @pytest.mark.parametrize("dtype", ["u1", "u2"])
    def test_transparency_is_put_on_white(self, dtype: str, tmp_path: Path) -> None:
        bands = values(dtype, 4)
        (tmp_path / "x.tif").write_bytes(tiff(bands, photometric="rgb", extrasamples=["unassalpha"]))
        top = np.iinfo(dtype).max
        opaque = bands[..., 3:] / top
        wanted = bands[..., :3] * opaque + top * (1 - opaque)
        array = read_array(tmp_path / "x.tif")
        assert not isinstance(array, Unreadable) and array.dtype == bands.dtype
        np.testing.assert_allclose(array.astype(np.float64), wanted, atol=1)
        np.testing.assert_allclose(pixels(read_image(tmp_path / "x.tif")), wanted * 255 / top, atol=2)

    def test_what_tifffile_reads_is_turned_too_and_pages_of_samples_are_refused(self, tmp_path: Path) -> None:
        grey = values("f2")
        flipped = np.ascontiguousarray(grey[::-1, ::-1])
        turned = read_image(tiff(flipped, photometric="minisblack", extratags=[(274, 3, 1, 3, True)]))
        np.testing.assert_array_equal(pixels(turned), pixels(read_image(tiff(grey, photometric="minisblack"))))
        with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
            for _ in range(2):
                writer.write(values("u2", 3), photometric="rgb")
        found = read_array(tmp_path / "x.tif")
        assert isinstance(found, Unreadable)
        assert "2 pages of 3 samples each; save one page, or a sample a page" in found.why

    def test_any_cut_is_unreadable_or_whole(self, tmp_path: Path) -> None:
        for data in (tiff(values("u2", 5), photometric="minisblack", planarconfig="contig"), tiff(values("f2"))):
            whole = tmp_path / "whole.tif"
            whole.write_bytes(data)
            wanted = read_array(whole)
            for end in range(0, len(data), 7):
                (tmp_path / "cut.tif").write_bytes(data[:end])
                found = read_array(tmp_path / "cut.tif")
                assert isinstance(found, Unreadable) or np.array_equal(found, wanted)
                read_image(tmp_path / "cut.tif")

    def test_without_the_extra_the_message_names_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("barlowtwins.data.tiff.HAS_TIFFFILE", False)
        (tmp_path / "x.tif").write_bytes(tiff(values("u2", 5), photometric="minisblack", planarconfig="contig"))
        why = r"a TIFF of 5 x 16 bits, unsigned; pip install 'barlowtwins[tiff]' reads it"
        assert read_array(tmp_path / "x.tif") == Unreadable(str(tmp_path / "x.tif"), why)
        assert "barlowtwins[tiff]" in read_image(tiff(values("f2"))).why  # type: ignore[union-attr]
        assert isinstance(read_image(tiff(values("u2"), photometric="miniswhite")), Image.Image), "Pillow does"


def raw_png(depth: int, kind: int, rows: bytes, transparent: bytes, width: int) -> bytes:
    """A PNG file of one row, chunk by chunk."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    body = chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(b"\0" + rows))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


class TestPNG:
    @pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
    def test_a_transparent_grey_of_every_depth_becomes_white(self, depth: int) -> None:
        levels = np.arange(8) % 2**depth
        rows = (
            levels.astype(">u2").tobytes()
            if depth == 16
            else np.packbits([[level >> bit & 1 for bit in range(depth)][::-1] for level in levels.tolist()]).tobytes()
        )
        for transparent in (0, 1):
            got = pixels(read_image(raw_png(depth, 0, rows, struct.pack(">H", transparent), 8)))[0, :, 0]
            wanted = np.where(levels == transparent, 255, np.rint(levels * 255 / (2**depth - 1)))
            assert got.tolist() == wanted.tolist()

    def test_a_transparent_color_of_16_bits(self) -> None:
        row = np.array([[65535, 0, 0], [0, 65535, 257], [513, 1, 1]], ">u2")
        data = raw_png(16, 2, row.tobytes(), row[2].tobytes(), 3)
        assert pixels(read_image(data))[0].tolist() == [[255, 0, 0], [0, 255, 1], [255, 255, 255]]
        grey = Image.fromarray(np.array([[0, 1000, 65535]], np.uint16))
        assert pixels(read_image(png(grey, transparency=1000)))[0, :, 0].tolist() == [0, 255, 255]

    def test_16_bits_a_color_are_channels_with_all_of_them(self, tmp_path: Path) -> None:
        cv2 = pytest.importorskip("cv2")
        color = values("u2", 3)
        cv2.imwrite(str(tmp_path / "x.png"), color[..., ::-1])
        np.testing.assert_array_equal(read_array(tmp_path / "x.png"), color)
        np.testing.assert_allclose(pixels(read_image(tmp_path / "x.png")), color >> 8, atol=0)

    @pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iCCP", "many"])
    @pytest.mark.parametrize("where", ["before", "after"])
    def test_long_texts_and_profiles_are_skipped(self, kind: str, where: str, tmp_path: Path) -> None:
        picture = Image.fromarray(values("u1", 3))
        info, long = PngImagePlugin.PngInfo(), "x" * 2_000_000
        for _ in range(70 if kind == "many" else 1):
            if kind == "tEXt":
                info.add_text("a", long)
            elif kind == "iTXt":
                info.add_itxt("a", long, zip=True)
            elif kind in ("zTXt", "many"):
                info.add_text("a", long[:1_000_000] if kind == "many" else long, zip=True)
        options = {"icc_profile": bytes(3_000_000)} if kind == "iCCP" else {}
        data = png(picture, pnginfo=info, **options)
        if where == "after":  # the chunks behind the pixels
            start, end = 33, data.index(b"IDAT") - 4
            data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
        np.testing.assert_array_equal(pixels(read_image(data)), np.asarray(picture))
        (tmp_path / "x.png").write_bytes(data)
        np.testing.assert_array_equal(read_array(tmp_path / "x.png"), np.asarray(picture))
        assert isinstance(read_image(data[:-20]), Unreadable), "still told from a cut file"


class TestPictures:
    """The same image as a path and as a PIL image."""

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
    def test_a_pil_image_that_carries_the_tag_is_turned(self, orientation: int, format: str, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "x"
        Image.fromarray(values("u1", 3)).save(path, format, exif=exif)
        wanted = np.asarray(as_image(path))
        opened: list[Callable[[], Image.Image]] = [lambda: Image.open(path), lambda: Image.open(path).copy()]
        for make in opened:
            image = make()
            np.testing.assert_array_equal(np.asarray(as_image(image)), wanted)
            np.testing.assert_array_equal(np.asarray(open_source([image]).read(0)), wanted)
            preprocessing = Preprocessing(5, None)
            assert bool((preprocessing(image) == preprocessing(path)).all())
            image.close()
        upright = as_image(path)
        assert as_image(upright) is upright, "not turned a second time"

    def test_a_cut_or_closed_image_is_one_row(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jpg"
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-900])
        cut, closed = Image.open(path), Image.open(path)
        closed.close()
        for image in (cut, closed):
            found = open_source([image]).read(0)
            assert isinstance(found, Unreadable) and found.path == str(path)
            with pytest.raises(DataError, match=r"cannot read .*; give a whole image"):
                as_image(image)
        cut.close()


class TestTwoReadings:
    @pytest.mark.parametrize("shape", [(3, 32, 32), (4, 32, 32), (32, 32, 3), (32, 30, 4)])
    def test_an_array_that_can_be_grey_images_or_one_of_color(self, shape: tuple[int, ...]) -> None:
        array = np.zeros(shape, np.uint8)
        two = rf"can be {shape[0]} grey images of .*, array\[..., None\], or one image of [34] channels"
        with pytest.raises(DataError, match=two):
            open_source(array)
        assert len(open_source(array[..., None])) == shape[0]

    def test_channels_first_is_said(self) -> None:
        with pytest.raises(DataError, match=r"channels come last: array\.transpose\(0, 2, 3, 1\)"):
            ArraySource("x", np.zeros((5, 3, 32, 32), np.uint8))

    @pytest.mark.parametrize("shape", [(10, 32, 48), (3, 32, 32), (13, 64, 64), (8, 8, 8), (8, 8, 224)])
    def test_files_of_either_order(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        array = RNG.integers(0, 255, shape, np.uint8)
        np.save(tmp_path / "x.npy", array)
        first, rows, last = shape
        two = rf"can be {first} x {rows} pixels of {last} channels, or {rows} x {last} of {first}; say which"
        with pytest.raises(DataError, match=two):
            open_source(f"channels:{tmp_path}")
        for axis, wanted in (("first", np.moveaxis(array, 0, -1)), ("last", array)):
            source = open_source(f"channels_{axis}:0-255:{tmp_path}")
            assert source.channels == wanted.shape[-1]
            np.testing.assert_array_equal(source.array().reshape(wanted.shape), wanted)  # type: ignore[union-attr]

    def test_one_file_of_many(self, tmp_path: Path) -> None:
        array = RNG.integers(0, 255, (7, 3, 32, 30), np.uint8)
        np.save(tmp_path / "first.npy", array)
        np.save(tmp_path / "last.npy", np.moveaxis(array, 1, -1))
        with pytest.raises(DataError, match=r"an array of 7x3x32x30 can be .*channels_last: or channels_first:"):
            open_source(tmp_path / "first.npy")
        for data in (tmp_path / "last.npy", f"channels_first:{tmp_path / 'first.npy'}"):
            np.testing.assert_array_equal(open_source(data).array(), np.moveaxis(array, 1, -1))
