"""Tar archives as sources: order, labels, random access; and archives that are cut or hostile. Also behind URLs."""

from __future__ import annotations

import io
import pickle
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from barlowtwins.core.errors import DataError
from barlowtwins.data.batches import open_batches, ranges
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import Source, open_source


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (shade,) * 3).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def keys(source: Source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def shades(source: Source) -> list[int | str]:
    images = [source.read(index) for index in range(len(source))]
    return [image.why if isinstance(image, Unreadable) else int(np.asarray(image).flat[0]) for image in images]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three archives; in the second the images are not in the order of their names."""
    write_tar(tmp_path / "s-000.tar", [("a.png", png(1)), ("b.png", png(2))])
    write_tar(tmp_path / "s-001.tar", [("d.png", png(3)), ("notes.txt", b"no image"), ("c.PNG", png(4))])
    write_tar(tmp_path / "s-002.tar", [("a.png", png(5))])
    return tmp_path


@pytest.mark.parametrize(
    "pattern", ["s-{000..002}.tar", "s-{002..000}.tar", "s-*.tar", "s-00{0,2,1}.tar", "{s-0*,s-000}.tar"]
)
def test_rows_are_sorted_archives_in_the_order_of_each(pattern: str, shards: Path) -> None:
    source = open_source(f"{shards}/{pattern}")
    assert keys(source) == [
        "s-000.tar/a.png",
        "s-000.tar/b.png",
        "s-001.tar/d.png",
        "s-001.tar/c.PNG",
        "s-002.tar/a.png",
    ]
    assert shades(source) == [1, 2, 3, 4, 5]
    assert (source.labels, source.classes) == (None, ())
    with pytest.raises(IndexError):
        source.read(5)


def test_one_archive_and_a_name_that_holds_braces(shards: Path) -> None:
    assert keys(open_source(shards / "s-002.tar")) == ["s-002.tar/a.png"]
    (shards / "s-002.tar").rename(shards / "x{1,2}.tar")
    assert shades(open_source(shards / "x{1,2}.tar")) == [5]


def test_archives_in_several_folders_have_keys_of_their_own(tmp_path: Path) -> None:
    for folder in "ab":
        write_tar(tmp_path / folder / "0.tar", [("x.png", png(ord(folder)))])
    assert keys(open_source(f"{tmp_path}/*/0.tar")) == ["a/0.tar/x.png", "b/0.tar/x.png"]


def test_a_pickled_source_reads_the_same_from_another_folder(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    source = open_source("s-*.tar")
    monkeypatch.chdir("/")
    assert shades(pickle.loads(pickle.dumps(source))) == [1, 2, 3, 4, 5]


def test_the_fingerprint_is_of_the_images_not_of_how_they_are_named(shards: Path) -> None:
    before = open_source(f"{shards}/s-*.tar").fingerprint()
    assert open_source(f"{shards}/s-00{{0..2}}.tar").fingerprint() == before
    write_tar(shards / "s-002.tar", [("b.png", png(5))])
    assert open_source(f"{shards}/s-*.tar").fingerprint() != before


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_with_long_and_odd_names(form: int, tmp_path: Path) -> None:
    names = ["d/" * 40 + "x.png", "ä ö.png"] + ["y" * 200 + ".png"] * (form != tarfile.USTAR_FORMAT)
    members = [(f"./{name}", png(number)) for number, name in enumerate(names)]
    source = open_source(write_tar(tmp_path / "t.tar", members, form))
    assert keys(source) == [f"t.tar/{name}" for name in names]
    assert shades(source) == list(range(len(names)))


def test_the_archive_of_the_tar_command(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(len(name)))
    (tmp_path / "dog" / "link.png").symlink_to("1.png")
    subprocess.run(["tar", "--sort=name", "-cf", "t.tar", "./cat", "./dog"], cwd=tmp_path, check=True)
    source = open_source(tmp_path / "t.tar")
    assert keys(source) == ["t.tar/cat/1.png", "t.tar/cat/2.png", "t.tar/dog/1.png", "t.tar/dog/link.png"]
    assert source.classes == ("cat", "dog") and source.labels is not None and source.labels.tolist() == [0, 0, 1, 1]
    assert shades(source)[2] == shades(source)[3] == len("dog/1.png")
    assert source.left_out == {"hidden files": 1}


def test_labels_beside_the_images(tmp_path: Path) -> None:
    first = [("0.cls", b"7\n"), ("0.jpg", png(0)), ("1.left.png", png(1)), ("1.right.png", png(2)), ("1.cls", b"10")]
    second = [("x/2.png", png(3)), ("x/2.json", b'{"caption": "a cat", "label": 7}')]
    write_tar(tmp_path / "0.tar", first)
    write_tar(tmp_path / "1.tar", second)
    source = open_source(f"{tmp_path}/*.tar")
    assert source.classes == ("10", "7") and source.labels is not None
    assert [source.classes[label] for label in source.labels] == ["7", "10", "10", "7"]
    write_tar(tmp_path / "2.tar", [("3.png", png(0)), ("3.json", b'{"caption": "a dog"}')])
    with pytest.raises(DataError, match=r"1 of 5 images in .* have no label, first 3\.png"):
        open_source(f"{tmp_path}/*.tar")
    write_tar(tmp_path / "2.tar", [("3.png", png(0)), ("3.json", b"{")])
    with pytest.raises(DataError, match=r"2\.tar/3\.json cannot be read as a label"):
        open_source(f"{tmp_path}/*.tar")


def test_bad_images_are_rows(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "t.tar", [("0.png", b""), ("1.png", b"text"), ("2.png", png(9))]))
    assert shades(source)[2] == 9
    assert source.read(0) == Unreadable("t.tar/0.png", "the file is empty")
    assert isinstance(source.read(1), Unreadable)


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "..\\x.png", "C:/x.png", "../notes.txt"])
def test_23_names_that_lead_out_of_the_archive_are_refused(name: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("ok.png", png(0)), (name, png(1))])
    with pytest.raises(DataError, match=r"t\.tar names .* outside of itself; refused"):
        open_source(tmp_path / "t.tar")


def test_an_archive_that_is_cut_anywhere_is_told(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", [(f"{n}.png", png(n)) for n in range(3)]).read_bytes()
    end = max(place for place in range(0, len(whole), 512) if whole[place : place + 512] != bytes(512)) + 512
    cut = tmp_path / "cut.tar"
    for size in [*range(0, end + 512, 128), end - 1, end, end + 511]:
        cut.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut\.tar is .*; make or copy it again"):
            open_source(cut)
    cut.write_bytes(whole[: end + 512])
    assert shades(open_source(cut)) == [0, 1, 2]


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", [(f"{n}.png", png(n)) for n in range(3)], tarfile.USTAR_FORMAT)
    data = bytearray(tar.read_bytes())
    data[data.index(b"1.png")] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match="is cut or damaged at byte"):
        open_source(tar)


def test_what_is_not_there_or_no_tar_is_told(shards: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*s-003\.tar, .*s-004\.tar; 3 files of"):
        open_source(f"{shards}/s-{{000..004}}.tar")
    with pytest.raises(DataError, match=r"there is no .*t-"):
        open_source(f"{shards}/t-*.tar")
    with pytest.raises(DataError, match="2,000,001 names"):
        open_source(f"{shards}/s-{{0..2000000}}.tar")
    write_tar(shards / "empty.tar", [("notes.txt", b"")])
    with pytest.raises(DataError, match=r"no images in .*1 archives hold none"):
        open_source(shards / "empty.tar")
    with tarfile.open(shards / "p.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"is compressed.*unpack it"):
        open_source(shards / "p.tar.gz")
    (shards / "s-000.tar").write_text("no archive")
    with pytest.raises(DataError, match=r"s-000\.tar is not a whole tar archive"):
        open_source(f"{shards}/s-*.tar")


def test_an_archive_that_vanishes_ends_the_work(shards: Path) -> None:
    source = open_source(f"{shards}/s-*.tar")
    (shards / "s-001.tar").unlink()
    assert isinstance(source.read(1), Image.Image)
    with pytest.raises(DataError, match=r"s-001\.tar cannot be read any more"):
        source.read(2)


def test_a_process_that_reads_it_says_so_in_one_line(shards: Path) -> None:
    source = open_source(f"{shards}/s-*.tar")
    (shards / "s-001.tar").unlink()
    with (
        pytest.raises(DataError, match=r"^[^\n]*s-001\.tar cannot be read any more[^\n]*$"),
        open_batches(source, TINY, ranges(0, 5, 1), workers=1) as batches,
    ):
        for _ in batches:
            pass


def labels(source: Source) -> list[str]:
    assert source.labels is not None
    return [source.classes[label] for label in source.labels]


DOTTED = {
    "versions": [("a1.5.png", "five"), ("a1.5.cls", "5"), ("a1.7.png", "seven"), ("a1.7.cls", "7")],
    "labels first": [("a1.7.cls", "7"), ("a1.5.cls", "5"), ("a1.5.png", "five"), ("a1.7.png", "seven")],
    "times in folders": [
        ("d.1/t.09.30.png", ""),
        ("d.1/t.09.30.cls", "5"),
        ("d.1/t.09.31.png", ""),
        ("d.1/t.09.31.json", '{"cls": 7}'),
    ],
    "one for all of a key, one of its own": [("a.cls", "5"), ("a.left.png", ""), ("a.7.png", ""), ("a.7.cls", "7")],
    "a label with more to its name": [
        ("a.png", ""),
        ("a.meta.json", '{"label": "5"}'),
        ("a.b.png", ""),
        ("a.b.cls", "7"),
    ],
}


@pytest.mark.parametrize("name", DOTTED)
def test_the_label_is_that_of_the_longest_name_shared(name: str, tmp_path: Path) -> None:
    members = [(key, png(1) if key.endswith("png") else data.encode()) for key, data in DOTTED[name]]
    assert labels(open_source(write_tar(tmp_path / "t.tar", members))) == ["5", "7"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("a.png", ""), ("a.cls", "5"), ("a.json", '{"label": 7}')],
            r"two labels for a: '5' in a\.cls and '7' in a\.json",
        ),
        (
            [("a.png", ""), ("a.x.cls", "5"), ("a.y.cls", "7")],
            r"two labels for a\.png: those of a\.x\.cls and a\.y\.cls",
        ),
        (
            [("a.png", ""), ("a.json", '{"label": 5, "cls": "cat"}')],
            r"a\.json has two labels, 5 as 'label' and 'cat' as",
        ),
        ([("a.1.png", ""), ("a.2.cls", "2")], r"1 of 1 images in .* no label, first a\.1\.png, beside 1 label files"),
        ([("a.png", ""), ("b.png", ""), ("./a.png", "")], r"t\.tar holds a\.png twice"),
        ([("a.png", ""), ("a.cls", "5"), ("a.cls", "7")], r"t\.tar holds a\.cls twice"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(members: list[tuple[str, str]], message: str, tmp_path: Path) -> None:
    written = [(key, png(1) if key.endswith("png") else data.encode()) for key, data in members]
    with pytest.raises(DataError, match=message):
        open_source(write_tar(tmp_path / "t.tar", written))


def test_one_label_in_two_files_is_one_label(tmp_path: Path) -> None:
    members = [("a.png", png(1)), ("a.cls", b"\xef\xbb\xbf5\n"), ("a.json", b'{"label": 5}')]
    assert labels(open_source(write_tar(tmp_path / "t.tar", members))) == ["5"]


def test_labels_without_an_image_are_counted(tmp_path: Path) -> None:
    members = [("a.png", png(1)), ("a.cls", b"5"), ("text.cls", b"7"), ("a.txt", b"caption"), ("b.json", b'{"x": 1}')]
    source = open_source(write_tar(tmp_path / "t.tar", members))
    assert labels(source) == ["5"]
    assert source.left_out == {"labels without an image": 1, ".txt files": 1, ".json files": 1}


@pytest.mark.parametrize("count", [2, 3])
def test_joined_archives_are_read_one_after_the_other(count: int, tmp_path: Path) -> None:
    parts = [
        write_tar(tmp_path / "parts" / f"{n}.tar", [(f"{n}.png", png(n)), (f"{n}.cls", b"%d" % n)])
        for n in range(count)
    ]
    with (tmp_path / "t.tar").open("wb") as joined:
        subprocess.run(["cat", *parts], stdout=joined, check=True)
    source = open_source(tmp_path / "t.tar")
    assert shades(source) == list(range(count)) and labels(source) == [str(n) for n in range(count)]
    assert source.notes == (f"t.tar is {count} archives joined to one file; all were read",)
    with (tmp_path / "t.tar").open("ab") as joined:
        joined.write(b"no archive")
    with pytest.raises(DataError, match=r"t\.tar is (no whole|cut or damaged)"):
        open_source(tmp_path / "t.tar")
    twice = tmp_path / "twice.tar"
    twice.write_bytes(parts[0].read_bytes() * 2)
    with pytest.raises(DataError, match=r"twice\.tar holds 0\.png twice"):
        open_source(twice)


def test_an_archive_that_tar_appended_a_newer_copy_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(1))
    subprocess.run(["tar", "-cf", "t.tar", "x.png"], cwd=tmp_path, check=True)
    (tmp_path / "x.png").write_bytes(png(2))
    subprocess.run(["tar", "-rf", "t.tar", "x.png"], cwd=tmp_path, check=True)
    with pytest.raises(DataError, match=r"holds x\.png twice, and which one is meant is not told"):
        open_source(tmp_path / "t.tar")


def test_links_inside_the_archive_are_followed_and_others_counted(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "1.png").write_bytes(png(1))
    (tmp_path / "a" / "raw").write_bytes(png(2))
    (tmp_path / "a" / "hard.png").hardlink_to(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "deep" / "up.png").symlink_to("../raw")
    (tmp_path / "a" / "deep" / "twice.png").symlink_to("up.png")
    (tmp_path / "a" / "out.png").symlink_to("/etc/hostname")
    (tmp_path / "a" / "knot.png").symlink_to("knot.png")
    (tmp_path / "outside.png").write_bytes(png(3))
    (tmp_path / "a" / "above.png").symlink_to("../outside.png")
    subprocess.run(["tar", "--sort=name", "-cf", "t.tar", "a"], cwd=tmp_path, check=True)
    source = open_source(tmp_path / "t.tar")
    found = dict(zip(keys(source), shades(source), strict=True))
    assert found == {
        "t.tar/a/1.png": 1,
        "t.tar/a/deep/twice.png": 2,
        "t.tar/a/deep/up.png": 2,
        "t.tar/a/hard.png": 1,
    }
    assert source.left_out == {"links that lead out of the archive": 3, "files without a suffix": 1}


def test_folders_of_systems_and_two_spellings_in_an_archive(tmp_path: Path) -> None:
    members = [("a/1.png", png(1)), ("a/@eaDir/1.png", png(2)), ("__MACOSX/a/1.png", png(2)), ("a/._1.png", b"")]
    source = open_source(write_tar(tmp_path / "t.tar", members))
    assert (shades(source), source.classes) == ([1], ("a",))
    assert source.left_out == {"files in @eaDir": 1, "files in __MACOSX": 1, "hidden files": 1}
    write_tar(tmp_path / "t.tar", [("\u00e4/1.png", png(1)), ("a\u0308/1.png", png(1))])
    with pytest.raises(DataError, match="two class folders are both called"):
        open_source(tmp_path / "t.tar")


def header(size: bytes, kind: bytes = b"0", name: bytes = b"a.png") -> bytes:
    """A block as tar has them, with the right checksum."""
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + bytes(12))
    block += b" " * 8 + kind + bytes(100) + b"ustar\x0000" + bytes(247)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(record: bytes) -> bytes:
    """A pax header that says `record` of the next member."""
    line = b"%d %s\n" % (len(record) + 4, record)
    assert len(line) == len(record) + 4
    return header(b"%011o" % len(line), b"x", b"pax") + line.ljust(512, b"\0")


NEGATIVE = b"\xff" * 12
HOSTILE = {
    "a negative size": header(NEGATIVE),
    "a negative size of no image": header(NEGATIVE, name=b"readme"),
    "a negative size that leads back": header(b"\xff" * 10 + b"\xfc\x00"),
    "a pax header of a negative size": header(NEGATIVE, b"x"),
    "a pax size that is negative": pax(b"size=-1024") + header(b"%011o" % 0),
    "a pax header of 4 GiB": header(b"%011o" % (2**32), b"x"),
    "a global header of 4 GiB": header(b"%011o" % (2**32), b"g"),
    "a long name of 4 GiB": header(b"%011o" % (2**32), b"L"),
    "a thousand headers before one": pax(b"path=a.png") * 3000,
    "a map of holes without end": pax(b"GNU.sparse.major=1")[:-1] + b"\0",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(HOSTILE[name] + bytes(1024))
    started = time.perf_counter()
    with pytest.raises(DataError) as caught:
        open_source(str(path))
    assert time.perf_counter() - started < 5
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
def test_a_sparse_file_of_gnu_tar_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"data")
    command = ["tar", "--sparse", "--format=pax", "--sparse-version=1.0", "-cf", "x.tar", "a.png"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("this tar makes no sparse archives")
    with pytest.raises(DataError, match="sparse"):
        open_source(str(tmp_path / "x.tar"))
