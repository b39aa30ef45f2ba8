"""Faults 32-36 and 38: image files that are cut, damaged, mislabelled, oversized, unusual or foreign."""

from __future__ import annotations

import functools
import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pytest
from fuzz import damage, with_right_checksums
from PIL import Image

from barlowtwins.data.images import FORMATS, Unreadable, read_image

AVIF = ["avif"] if "AVIF" in FORMATS else []


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@functools.cache
def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth and rough parts, no two rows alike."""
    y, x = np.mgrid[:23, :37]
    pixels = np.stack([x * 6, y * 10, x * y % 256], -1).astype(np.uint8)
    pixels[5:15, 5:25] = np.random.default_rng(seed).integers(0, 256, (10, 20, 3))
    return Image.fromarray(pixels).convert(mode)


FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg grey": ("JPEG", "L", {}),
    "jpeg cmyk": ("JPEG", "CMYK", {}),
    "jpeg with restarts": ("JPEG", "RGB", {"restart_marker_blocks": 1}),
    "png": ("PNG", "RGB", {}),
    "png grey": ("PNG", "L", {}),
    "png 1-bit": ("PNG", "1", {}),
    "png palette": ("PNG", "P", {"transparency": 3}),
    "png rgba": ("PNG", "RGBA", {}),
    "apng": ("PNG", "RGB", {"save_all": True, "append_images": [picture(seed=1)]}),
    "webp": ("WEBP", "RGB", {}),
    "webp lossless": ("WEBP", "RGBA", {"lossless": True}),
    "gif": ("GIF", "P", {}),
    "gif animated": ("GIF", "RGB", {"save_all": True, "append_images": [picture(seed=1)]}),
    "bmp": ("BMP", "RGB", {}),
    "ppm": ("PPM", "RGB", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff lzw": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "tiff deflate": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "tiff jpeg": ("TIFF", "RGB", {"compression": "jpeg"}),
    "tiff cmyk": ("TIFF", "CMYK", {}),
    **{name: ("AVIF", "RGB", {}) for name in AVIF},
}


@functools.cache
def file(name: str) -> bytes:
    format, mode, options = FILES[name]
    return encode(picture(mode), format, **options)


def pixels(image: Image.Image | Unreadable) -> npt.NDArray[np.int64]:
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


class TestTruncated:
    @pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("jpeg", "png", "apng"))])
    def test_32_any_cut_of_a_jpeg_or_png_file_is_unreadable(self, name: str) -> None:
        data = file(name)
        assert isinstance(read_image(data), Image.Image)
        for end in range(len(data)):
            assert isinstance(read_image(data[:end]), Unreadable), f"cut after {end} of {len(data)} bytes"

    @pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(("jpeg", "png", "apng"))])
    def test_32_a_cut_of_another_file_is_unreadable_or_beyond_the_first_image(self, name: str) -> None:
        data = file(name)
        whole = pixels(read_image(data))
        readable = 0
        for end in range(0, len(data), 3):
            read = read_image(data[:end])
            if isinstance(read, Image.Image):
                readable += 1
                np.testing.assert_array_equal(pixels(read), whole)
        second_frame = name == "gif animated"
        assert readable <= (len(data) / 3 if second_frame else 1)  # trailers and padding

    def test_32_reading_another_image_before_leaves_no_trace(self) -> None:
        """A decoder that keeps quiet about missing data would show what lay in memory: the neighbour's pixels."""
        neighbour = Image.fromarray(np.full((256, 256, 3), 200, np.uint8))
        data = encode(Image.fromarray(np.zeros((256, 256, 3), np.uint8)), "JPEG")
        for _ in range(20):
            assert isinstance(read_image(encode(neighbour, "JPEG")), Image.Image)
            assert isinstance(read_image(data[: len(data) * 2 // 3]), Unreadable)


class TestDamaged:
    @pytest.mark.parametrize("name", FILES)
    def test_32_random_damage_is_unreadable_or_an_image(self, name: str) -> None:
        chance = random.Random(name)
        data = file(name)
        for _ in range(60):
            damaged = damage(data, chance)
            if data.startswith(b"\x89PNG"):
                damaged = with_right_checksums(damaged)
            image = read_image(damaged, max_pixels=10**7)
            if isinstance(image, Image.Image):
                assert image.mode == "RGB"
                assert len(image.tobytes()) == 3 * image.width * image.height

    def test_36_damaged_exif_counts_as_none(self) -> None:
        damaged = [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0XX*\0\x08\0\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"]
        letter = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0A\0\0\0\0\0\0\0"  # orientation "A"
        for exif in [*damaged, letter]:
            for format in ("JPEG", "PNG", "WEBP"):
                data = encode(picture(), format, exif=exif)
                np.testing.assert_array_equal(pixels(read_image(data)), pixels(read_image(encode(picture(), format))))


class TestMislabelled:
    def test_33_zero_bytes_and_text(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "text.jpg").write_text("This is no image.\n" * 100)
        assert read_image(tmp_path / "empty.jpg") == Unreadable(str(tmp_path / "empty.jpg"), "the file is empty")
        text = read_image(tmp_path / "text.jpg")
        assert isinstance(text, Unreadable)
        assert "not an image" in text.why

    def test_33_a_file_is_read_by_content(self, tmp_path: Path) -> None:
        (tmp_path / "photo.png").write_bytes(file("jpeg"))
        (tmp_path / "photo").write_bytes(file("png"))
        np.testing.assert_array_equal(pixels(read_image(tmp_path / "photo.png")), pixels(read_image(file("jpeg"))))
        np.testing.assert_array_equal(pixels(read_image(tmp_path / "photo")), pixels(picture()))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(104)


def patched(data: bytes, place: int, format: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(format, changed, place, *values)
    return bytes(changed)


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


SIDE = 100_000
BOMBS: dict[str, bytes] = {
    "png": b"\x89PNG\r\n\x1a\n"
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    + png_chunk(b"IDAT", zlib.compress(bytes(10**6)))
    + png_chunk(b"IEND", b""),
    "bmp": patched(encode(Image.new("RGB", (4, 4)), "BMP"), 18, "<ii", SIDE, SIDE),
    "ppm": b"P6 %d %d 255\n" % (SIDE, SIDE) + bytes(1000),
    "tiff": tiff(SIDE, SIDE),
    "jpeg": (lambda data: patched(data, data.index(b"\xff\xc0") + 5, ">HH", 65500, 65500))(
        encode(Image.new("RGB", (8, 8)), "JPEG")
    ),
    "gif": patched(encode(Image.new("P", (4, 4)), "GIF"), 6, "<HH", 65535, 65535),
    "webp": riff(
        b"VP8X" + struct.pack("<II", 10, 2) + (16383).to_bytes(3, "little") * 2,
        b"ANIM" + struct.pack("<I", 6) + bytes(6),
        b"ANMF"
        + struct.pack("<I", 16 + len(encode(Image.new("RGB", (8, 8)), "WEBP")) - 12)
        + bytes(6)
        + (7).to_bytes(3, "little") * 2
        + bytes(4)
        + encode(Image.new("RGB", (8, 8)), "WEBP")[12:],
    ),
}


class TestDecompressionBombs:
    @pytest.mark.parametrize("name", BOMBS)
    def test_34_refused_from_the_header(self, name: str) -> None:
        image = read_image(BOMBS[name])
        assert isinstance(image, Unreadable)
        assert "pixels" in image.why, image.why

    @pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
    def test_34_memory_stays_bounded(self, tmp_path: Path) -> None:
        for name, data in BOMBS.items():
            (tmp_path / name).write_bytes(data)
        program = (
            "import resource, sys\n"
            "from barlowtwins.data.images import Unreadable, read_image\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
            "before = peak()\n"
            "assert all(isinstance(read_image(path), Unreadable) for path in sys.argv[1:])\n"
            "print(peak() - before)\n"
        )
        files = [str(tmp_path / name) for name in BOMBS]
        grown = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
        assert int(grown.stdout) < 40  # MiB; one of these images would take at least 800


class TestUnusual:
    """Fault 35; tests/test_images.py compares the colours of each with its definition."""

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "I", "F", "CMYK", "LAB"])
    def test_35_every_mode_that_a_tiff_or_png_file_can_have(self, mode: str) -> None:
        image = picture("RGB") if mode not in ("I;16", "I", "F", "LAB") else Image.new(mode, (37, 23))
        data = encode(image if image.mode == mode else image.convert(mode), "PNG" if mode == "P" else "TIFF")
        assert pixels(read_image(data)).shape == (23, 37, 3)

    @pytest.mark.parametrize(
        "format", [format for format in FORMATS if format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")]
    )
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_36_exif_orientation_is_applied_once(self, format: str, orientation: int) -> None:
        upright = np.zeros((32, 48, 3), np.uint8)
        upright[:16, :16], upright[:16, 16:], upright[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(as_stored(upright, orientation)))
        options = {"quality": 95} if format in ("JPEG", "WEBP", "AVIF") else {}
        image = read_image(encode(stored, format, exif=exif, **options))
        got = pixels(image)
        assert got.shape == upright.shape
        for y, x in ((8, 8), (8, 32), (24, 8), (24, 32)):
            assert abs(got[y, x] - upright[y, x]).max() <= 12, (y, x)
        assert isinstance(image, Image.Image) and 0x0112 not in image.getexif()

    @pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 11, reason="this Pillow does not look for it in WebP")
    def test_36_xmp_orientation(self) -> None:
        xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
        assert pixels(read_image(encode(picture(), "WEBP", xmp=xmp))).shape == (37, 23, 3)

    @pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_36_the_first_frame_of_several(self, format: str) -> None:
        red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
        options = {"lossless": True} if format == "WEBP" else {}
        data = encode(red, format, save_all=True, append_images=[blue, red, blue], **options)
        with Image.open(io.BytesIO(data)) as several:
            assert getattr(several, "n_frames", 1) == 4
        assert (pixels(read_image(data)) == [255, 0, 0]).all()

    @pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
    def test_37_slender_images(self, size: tuple[int, int]) -> None:
        for format in ("JPEG", "PNG", "WEBP", "TIFF"):
            assert pixels(read_image(encode(Image.new("RGB", size, "white"), format))).shape == (size[1], size[0], 3)


def as_stored(upright: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """The rows and columns of a file whose tag 274 says where they belong (TIFF 6.0, Orientation)."""
    turned = upright if orientation <= 4 else upright.transpose(1, 0, 2)  # 5-8: rows of the file are columns
    rows_from_the_end = orientation in (3, 4, 6, 7)
    columns_from_the_end = orientation in (2, 3, 7, 8)
    if orientation > 4:  # row 0 of the file is the left (5, 8) or right (6, 7) side; column 0 the top (5, 6) or bottom
        rows_from_the_end, columns_from_the_end = orientation in (6, 7), orientation in (7, 8)
    turned = turned[::-1] if rows_from_the_end else turned
    return turned[:, ::-1] if columns_from_the_end else turned


class TestForeign:
    FOREIGN = ("EPS", "PDF", "ICO", "ICNS", "TGA", "PCX", "SGI", "DDS", "JPEG2000")

    def test_38_files_of_other_formats_are_unreadable(self, tmp_path: Path) -> None:
        Image.init()
        for format in self.FOREIGN:
            path = tmp_path / f"{format}.jpg"
            path.write_bytes(encode(picture().resize((64, 64)), format))
            assert isinstance(read_image(path), Unreadable), format
        (tmp_path / "fits.jpg").write_bytes(b"SIMPLE  =                    T".ljust(2880))
        (tmp_path / "psd.jpg").write_bytes(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(99))
        assert isinstance(read_image(tmp_path / "fits.jpg"), Unreadable)
        assert isinstance(read_image(tmp_path / "psd.jpg"), Unreadable)

    def test_38_their_parsers_are_not_even_loaded(self, tmp_path: Path) -> None:
        (tmp_path / "drawing.jpg").write_bytes(encode(picture(), "EPS"))
        program = (
            "import sys\n"
            "from barlowtwins.data.images import read_image\n"
            "print(read_image(sys.argv[1]))\n"
            "print(*(name for name in sys.modules if name.startswith('PIL.') and name.endswith('ImagePlugin')))\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "drawing.jpg")]
        answer, loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert answer.startswith("Unreadable(")
        allowed = {f"PIL.{name}ImagePlugin" for name in ("Avif", "Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP")}
        assert set(loaded.split()) <= allowed
