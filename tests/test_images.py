"""Reading one image: what may be given, what comes back, and how each kind of pixel becomes RGB."""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from barlowtwins.data.images import FORMATS, HEIF_SUFFIXES, IMAGE_SUFFIXES, Unreadable, read_image, to_rgb


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(image: Image.Image | Unreadable) -> npt.NDArray[np.int64]:
    """(H, W, 3) of an image that was read."""
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


PICTURE = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)


class TestWhatMayBeGiven:
    def test_paths_bytes_and_files_give_the_same_pixels(self, tmp_path: Path) -> None:
        data = encode(Image.fromarray(PICTURE), "PNG")
        path = tmp_path / "picture.png"
        path.write_bytes(data)
        with path.open("rb") as file:
            given = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file]
            for source in given:
                np.testing.assert_array_equal(pixels(read_image(source)), PICTURE)

    def test_a_stream_that_cannot_seek(self) -> None:
        read_end, write_end = os.pipe()
        with os.fdopen(write_end, "wb") as file:
            file.write(encode(Image.fromarray(PICTURE), "PNG"))
        with os.fdopen(read_end, "rb") as file:
            np.testing.assert_array_equal(pixels(read_image(file)), PICTURE)

    def test_every_format_of_the_list_is_read(self) -> None:
        picture = Image.fromarray(PICTURE)
        for format in FORMATS:
            exact = {"WEBP": {"lossless": True}}.get(format, {})
            read = pixels(read_image(encode(picture, format, **exact)))
            assert read.shape == PICTURE.shape
            if format not in ("JPEG", "AVIF", "GIF"):  # lossy, or 256 colours
                np.testing.assert_array_equal(read, PICTURE, err_msg=format)

    def test_every_suffix_is_one_that_pillow_knows_for_these_formats(self) -> None:
        Image.init()
        known = {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}
        assert known | {".avif"} | HEIF_SUFFIXES >= IMAGE_SUFFIXES  # listed even where Pillow cannot read it

    def test_a_folder_a_missing_file_and_a_name_that_cannot_be(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing.jpg"
        assert read_image(tmp_path) == Unreadable(str(tmp_path), "not a regular file")
        assert read_image(missing) == Unreadable(str(missing), "No such file or directory")
        assert isinstance(read_image("nul\0byte.jpg"), Unreadable)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
    def test_a_named_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.jpg")
        assert isinstance(read_image(tmp_path / "pipe.jpg"), Unreadable)


class TestWhatComesBack:
    def test_a_plain_image_without_a_file(self, tmp_path: Path) -> None:
        for format in FORMATS:
            path = tmp_path / f"picture.{format}"
            path.write_bytes(encode(Image.fromarray(PICTURE), format))
            image = read_image(path)
            assert type(image) is Image.Image
            assert image.info == {}
            before = pixels(image)
            path.write_bytes(bytes(path.stat().st_size))  # were the file mapped, the pixels would change
            np.testing.assert_array_equal(pixels(pickle.loads(pickle.dumps(image))), before)

    def test_the_limit_on_pixels(self) -> None:
        data = encode(Image.new("RGB", (20, 10)), "PNG")
        assert isinstance(read_image(data, max_pixels=200), Image.Image)
        assert read_image(data, max_pixels=199) == Unreadable("<bytes>", "20 x 10 pixels are more than 199")

    def test_settings_of_pillow_stay(self) -> None:
        before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
        read_image(encode(Image.fromarray(PICTURE), "JPEG")[:-40])
        assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)

    def test_warnings_of_pillow_stay_inside(self) -> None:
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\xff\0\0\0\xff\xff\0\0"  # a tag that lies past the end
        large = encode(Image.new("1", (10_000, 9_000)), "PNG")  # Pillow warns from 89 million pixels on
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Image.open(io.BytesIO(large)):
                pass
            with Image.open(io.BytesIO(encode(Image.fromarray(PICTURE), "JPEG", exif=exif))) as image:
                image.getexif()
        kinds = {warning.category for warning in caught}
        assert kinds == {Image.DecompressionBombWarning, UserWarning}, "Pillow no longer warns: find other cases"
        # Here a warning is an error, so one that escapes would fail the test.
        assert isinstance(read_image(large, max_pixels=10**6), Unreadable)
        assert isinstance(read_image(encode(Image.fromarray(PICTURE), "JPEG", exif=exif)), Image.Image)

    def test_filters_of_warnings_are_as_before_when_threads_overlap(self) -> None:
        data = encode(Image.fromarray(PICTURE).resize((300, 300)), "JPEG")
        before = list(warnings.filters)
        threads = [threading.Thread(target=lambda: [read_image(data) for _ in range(50)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before


class TestToRGB:
    def test_rgb_is_given_back_as_it_is(self) -> None:
        image = Image.fromarray(PICTURE)
        assert to_rgb(image) is image

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
    def test_white_stays_white(self, mode: str) -> None:
        white = {"LA": (255, 255), "La": (255, 255), "RGBA": (255,) * 4, "RGBa": (255,) * 4, "RGBX": (255,) * 4}
        white |= {"CMYK": (0, 0, 0, 0), "YCbCr": (255, 128, 128), "HSV": (0, 0, 255), "P": 7, "PA": (7, 255)}
        image = Image.new(mode, (2, 2), white.get(mode, 255))
        if mode in ("P", "PA"):
            image.putpalette([0] * 21 + [255] * 3)
        assert (pixels(to_rgb(image)) == 255).all()

    @given(grey=hnp.arrays(np.uint16, (3, 4)))
    @settings(max_examples=50, deadline=None)
    def test_16_bit_grey_is_divided_by_257(self, grey: npt.NDArray[np.uint16]) -> None:
        expected = np.round(grey.astype(np.float64) / 65535 * 255)
        for format in ("PNG", "TIFF"):
            got = pixels(read_image(encode(Image.fromarray(grey), format)))
            np.testing.assert_array_equal(got, np.repeat(expected[..., None], 3, -1))
        np.testing.assert_array_equal(pixels(to_rgb(Image.fromarray(grey.astype(np.int32))))[..., 0], expected)

    def test_16_bit_grey_of_either_byte_order_and_ppm(self) -> None:
        grey = np.array([[0, 257, 65535], [1000, 30000, 128]], np.uint16)
        expected = np.round(grey / 257.0)
        big = Image.frombytes("I;16B", (3, 2), grey.astype(">u2").tobytes())
        np.testing.assert_array_equal(pixels(to_rgb(big))[..., 0], expected)
        pgm = b"P5 3 2 65535\n" + grey.astype(">u2").tobytes()
        np.testing.assert_array_equal(pixels(read_image(pgm))[..., 0], expected)

    def test_32_bit_integers_beyond_16_bit_are_scaled_by_their_range(self) -> None:
        grey = np.array([[-(2**31), 0, 2**31 - 1]], np.int32)
        np.testing.assert_array_equal(pixels(to_rgb(Image.fromarray(grey)))[0, :, 0], [0, 128, 255])

    @given(grey=hnp.arrays(np.float32, (3, 5), elements=st.floats(width=32)))
    @settings(max_examples=200, deadline=None)
    def test_floats_are_scaled_by_their_finite_range(self, grey: npt.NDArray[np.float32]) -> None:
        got = pixels(to_rgb(Image.fromarray(grey)))[..., 0]
        finite = np.isfinite(grey)
        assert (got[np.isnan(grey) | (grey == -np.inf)] == 0).all()
        values = grey[finite].astype(np.float64)
        if values.size and values.min() < values.max():
            expected = (values - values.min()) / (values.max() - values.min()) * 255
            assert (abs(got[finite] - expected) <= 0.5 + 1e-9).all()
            assert (got[grey == np.inf] == 255).all()
        else:
            assert (got == 0).all()

    def test_a_signalling_nan_does_not_warn(self) -> None:
        grey = np.array([0x7F800001, 0x3F800000, 0], np.uint32).view(np.float32).reshape(1, 3)  # sNaN, 1, 0
        np.testing.assert_array_equal(pixels(to_rgb(Image.fromarray(grey)))[0, :, 0], [0, 255, 0])

    @given(rgba=hnp.arrays(np.uint8, (4, 5, 4)))
    @settings(max_examples=50, deadline=None)
    def test_transparency_is_composited_on_white(self, rgba: npt.NDArray[np.uint8]) -> None:
        alpha = rgba[..., 3:] / 255.0
        expected = alpha * rgba[..., :3] + (1 - alpha) * 255
        for source in (Image.fromarray(rgba), read_image(encode(Image.fromarray(rgba), "PNG"))):
            assert isinstance(source, Image.Image)
            assert abs(pixels(to_rgb(source)) - expected).max() <= 0.5 + 1e-9

    def test_transparency_of_palettes_and_of_single_colours(self) -> None:
        palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
        palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        white, half = [255, 255, 255], [148, 153, 158]  # 40 * 128 / 255 + 255 * 127 / 255, and so on
        for format in ("PNG", "GIF"):
            got = pixels(read_image(encode(palette, format, transparency=1)))
            np.testing.assert_array_equal(got[0], [[10, 20, 30], white, [70, 80, 90]], err_msg=format)
        got = pixels(read_image(encode(palette, "PNG", transparency=bytes([255, 128, 0]))))
        assert abs(got[0] - [[10, 20, 30], half, white]).max() <= 1
        grey = Image.fromarray(np.array([[5, 6]], np.uint8))
        assert pixels(read_image(encode(grey, "PNG", transparency=5)))[0].tolist() == [white, [6, 6, 6]]
        colour = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
        assert pixels(read_image(encode(colour, "PNG", transparency=(1, 2, 3))))[0].tolist() == [white, [4, 5, 6]]

    def test_cmyk(self) -> None:
        cmyk = np.random.default_rng(1).integers(0, 256, (6, 7, 4), np.uint8)
        ink = 255.0 - cmyk
        expected = ink[..., :3] * ink[..., 3:] / 255
        got = pixels(read_image(encode(Image.frombytes("CMYK", (7, 6), cmyk.tobytes()), "TIFF")))
        assert abs(got - expected).max() <= 1

    def test_cielab_of_a_tiff_that_pillow_did_not_write(self) -> None:
        """Against the definition of CIELAB, at the white of D50, and of sRGB, in float64."""
        rgb = np.array([[255, 255, 255], [128, 128, 128], [200, 60, 50], [40, 120, 80], [60, 70, 180]])
        got = pixels(read_image(lab_tiff(srgb_to_lab(rgb / 255.0))))
        assert abs(got[0] - rgb).max() <= 3  # L, a and b are whole numbers in the file


def srgb_to_lab(srgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, 3) in 0..1 to (n, 3) L in 0..100, a, b."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz_d50 = np.array(
        [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
    )
    x, y, z = (linear @ to_xyz_d50.T / [0.96422, 1.0, 0.82521]).T
    f = [np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29) for t in (x, y, z)]
    return np.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])], -1)


def lab_tiff(lab: npt.NDArray[np.float64]) -> bytes:
    """A TIFF file of one row of CIELAB pixels (photometric interpretation 8: L unsigned, a and b signed bytes)."""
    scaled = np.round(lab * [2.55, 1, 1]).astype(np.int64)
    strip = np.where(scaled < 0, scaled + 256, scaled).astype(np.uint8).tobytes()
    short, long = 3, 4
    tags = [(256, short, 1, len(lab)), (257, short, 1, 1), (258, short, 3, 0), (259, short, 1, 1), (262, short, 1, 8)]
    tags += [(273, long, 1, 0), (277, short, 1, 3), (278, short, 1, 1), (279, long, 1, len(strip))]
    after = 8 + 2 + 12 * len(tags) + 4  # where the bits per sample lie, and the pixels after them
    values = {258: after, 273: after + 6}
    entries = b"".join(struct.pack("<HHII", tag, kind, n, values.get(tag, value)) for tag, kind, n, value in tags)
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return header + entries + struct.pack("<I", 0) + struct.pack("<3H", 8, 8, 8) + strip
