"""Faults 26-31, as far as they concern listing and reading: folders that are not what one hopes for."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from barlowtwins.core.errors import DataError
from barlowtwins.core.files import atomic_write
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import Source, open_source

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows cannot have such files")


def draw(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (shade,) * 3).save(path, "PNG")


def keys(source: Source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def all_read(source: Source) -> bool:
    return all(isinstance(source.read(index), Image.Image) for index in range(len(source)))


class TestNothingThere:
    """Fault 26."""

    def test_26_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"^no folder, file or data set '.*holiday'; data sets: shapes"):
            open_source(tmp_path / "holiday")

    def test_26_empty(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        with pytest.raises(
            DataError, match=f"^no images in {tmp_path}: no files are there; give a folder that has some$"
        ):
            open_source(tmp_path)

    def test_26_without_images(self, tmp_path: Path) -> None:
        for name in [f"{n}.txt" for n in range(9)] + ["1.pdf", "2.PDF", "sub/3.pdf", "Makefile", "a.doc"]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        message = r"14 files, most common suffixes \.txt \(9\), \.pdf \(3\), none \(1\); known are \.apng .*\.jpg"
        with pytest.raises(DataError, match=message):
            open_source(tmp_path)

    @POSIX
    def test_26_a_folder_that_must_not_be_read(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            root.chmod(0o755)
            draw(root / "1.png")
            (root / "secret").mkdir(mode=0)
            with (
                not_as_root(),
                pytest.raises(DataError, match=r"cannot list .*secret: Permission denied; make it readable"),
            ):
                open_source(root)


@contextlib.contextmanager
def not_as_root() -> Iterator[None]:
    """Permissions do not stop root, so be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


class TestOddFolders:
    """Fault 27."""

    def test_27_flat_and_nested_with_odd_names(self, tmp_path: Path) -> None:
        names = ["a b.png", "ä.PNG", "日本/猫 1.Jpeg", "x.y.z/w..png", "-rf.png", "#1.png", "100%.png", "🙂.png"]
        for name in names:
            draw(tmp_path / name)
        source = open_source(tmp_path)
        listed = keys(source)
        if sys.platform != "darwin":  # there the file system may choose another normal form
            assert listed == sorted(names)
        assert len(listed) == len(names)
        assert all_read(source)

    @POSIX
    def test_27_names_that_are_not_unicode(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9.png")
        try:
            draw(tmp_path / name)
        except OSError:
            pytest.skip("this file system has only Unicode names")
        source = open_source(tmp_path)
        assert keys(source) == [name]
        assert all_read(source)
        assert len(source.fingerprint()) == 64

    def test_27_hidden_files_and_our_own_temporary_files_are_left_out(self, tmp_path: Path) -> None:
        draw(tmp_path / "a.png")
        draw(tmp_path / "._a.png")
        draw(tmp_path / ".hidden" / "b.png")
        with atomic_write(tmp_path / "c.png") as file:
            assert len(list(tmp_path.iterdir())) == 4
            assert keys(open_source(tmp_path)) == ["a.png"]
            file.write(b"now it is there")
        assert keys(open_source(tmp_path)) == ["a.png", "c.png"]

    @POSIX
    def test_27_loops_of_links_end(self, tmp_path: Path) -> None:
        draw(tmp_path / "a" / "1.png")
        draw(tmp_path / "b" / "2.png")
        (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "a" / "self").symlink_to(".", target_is_directory=True)
        (tmp_path / "a" / "knot").symlink_to("knot")
        (tmp_path / "b" / "other").symlink_to("../a", target_is_directory=True)
        (tmp_path / "c").symlink_to("b", target_is_directory=True)
        expected = ["a/1.png", "b/2.png", "b/other/1.png", "c/2.png", "c/other/1.png"]
        assert keys(open_source(tmp_path)) == expected

    @POSIX
    def test_27_links_to_files_are_read_and_broken_ones_are_reported(self, tmp_path: Path) -> None:
        draw(tmp_path / "elsewhere" / "real", 5)
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "good.png").symlink_to("../elsewhere/real")
        (tmp_path / "images" / "gone.png").symlink_to("../elsewhere/not there")
        (tmp_path / "images" / "knot.png").symlink_to("knot.png")
        os.mkfifo(tmp_path / "images" / "pipe.png")
        source = open_source(tmp_path / "images")
        assert keys(source) == ["gone.png", "good.png", "knot.png"]
        assert [isinstance(source.read(index), Unreadable) for index in range(3)] == [True, False, True]

    def test_27_a_folder_that_is_named_like_an_image(self, tmp_path: Path) -> None:
        draw(tmp_path / "album.jpg" / "1.png")
        assert keys(open_source(tmp_path)) == ["album.jpg/1.png"]


class TestWhileRunning:
    """Fault 28."""

    def test_28_a_file_that_vanishes_or_becomes_unreadable(self, tmp_path: Path) -> None:
        for name in ("1.png", "2.png", "3.png", "4.png"):
            draw(tmp_path / name)
        source = open_source(tmp_path)
        (tmp_path / "1.png").unlink()
        (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
        (tmp_path / "3.png").unlink()
        (tmp_path / "3.png").mkdir()
        read = [source.read(index) for index in range(4)]
        assert [image.path for image in read if isinstance(image, Unreadable)] == [
            str(tmp_path / name) for name in ("1.png", "2.png", "3.png")
        ]
        assert isinstance(read[3], Image.Image)

    @POSIX
    def test_28_a_file_whose_permission_is_taken_away(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            root.chmod(0o755)
            draw(root / "1.png")
            source = open_source(root)
            (root / "1.png").chmod(0)
            with not_as_root():
                assert source.read(0) == Unreadable(str(root / "1.png"), "Permission denied")


class TestOrder:
    """Fault 29."""

    def test_29_order_does_not_depend_on_the_file_system(self, tmp_path: Path) -> None:
        names = [f"{folder}/{n}.png" for folder in ("b", "a", "A", "a-", "a.d", "ab") for n in (10, 9, 1)]
        if (tmp_path / "A").exists() or sys.platform in ("win32", "darwin"):
            names = [name for name in names if not name.startswith("A/")]
        listings = []
        for number, order in enumerate((names, names[::-1], sorted(names))):
            for name in order:
                draw(tmp_path / str(number) / name)
            listings.append(keys(open_source(tmp_path / str(number))))
        assert listings == [sorted(names)] * 3


class TestChanged:
    """Fault 30: a resume compares fingerprints."""

    def test_30_one_more_image_changes_the_fingerprint_and_another_place_does_not(self, tmp_path: Path) -> None:
        for name in ("a/1.png", "b/2.png"):
            draw(tmp_path / "here" / name)
        before = open_source(tmp_path / "here").fingerprint()
        (tmp_path / "here").rename(tmp_path / "there")
        assert open_source(tmp_path / "there").fingerprint() == before
        draw(tmp_path / "there" / "b" / "3.png")
        assert open_source(tmp_path / "there").fingerprint() != before


class TestFewClasses:
    """Fault 31."""

    def test_31_one_class_and_a_class_with_one_image(self, tmp_path: Path) -> None:
        draw(tmp_path / "only" / "1.png")
        source = open_source(tmp_path)
        assert source.classes == ("only",)
        assert source.labels is not None and source.labels.tolist() == [0]
        for name in ("1.png", "2.png"):
            draw(tmp_path / "more" / name)
        (tmp_path / "empty").mkdir()
        source = open_source(tmp_path)
        assert source.classes == ("more", "only"), "a folder without images is no class"
        assert source.labels is not None and np.bincount(source.labels).tolist() == [2, 1]
