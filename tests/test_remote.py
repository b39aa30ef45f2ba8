"""Images behind URLs: folders and tar shards on file systems of fsspec, and file systems that fail."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from test_tars import keys, png, shades, write_tar

from barlowtwins.core.errors import DataError
from barlowtwins.data import remote
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import open_source
from barlowtwins.data.remote import expand, is_url


@pytest.fixture
def bucket() -> str:
    """A folder in memory, as a bucket would be."""
    return f"memory://{uuid.uuid4().hex}"


def put(url: str, data: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(data)


def test_a_folder_is_listed_sorted_and_labelled_as_on_disk(bucket: str, tmp_path: Path) -> None:
    for number, key in enumerate(["b/2.png", "b/10.png", "a/deep/x.png", "a-b/1.PNG", "a/.hidden.png", "a/notes.txt"]):
        put(f"{bucket}/{key}", png(number))
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(png(number))
    on_disk = open_source(tmp_path)
    for url in (bucket, f"{bucket}/", tmp_path.as_uri()):
        source = open_source(url)
        assert keys(source) == keys(on_disk)
        assert shades(source) == shades(on_disk) == [3, 2, 1, 0]
        assert source.classes == on_disk.classes and list(source.labels) == list(on_disk.labels)
        assert source.fingerprint() == on_disk.fingerprint()


def test_tar_shards_behind_a_url(bucket: str, tmp_path: Path) -> None:
    for number in range(3):
        tar = write_tar(tmp_path / f"s-{number}.tar", [("a.png", png(2 * number)), ("b.png", png(2 * number + 1))])
        put(f"{bucket}/s-{number}.tar", tar.read_bytes())
    expected = open_source(f"{tmp_path}/s-*.tar")
    for pattern in ("s-{0..2}.tar", "s-*.tar"):
        source = open_source(f"{bucket}/{pattern}")
        assert keys(source) == keys(expected) and shades(source) == list(range(6))
        assert source.fingerprint() == expected.fingerprint()
    assert keys(open_source(f"{bucket}/s-1.tar")) == ["s-1.tar/a.png", "s-1.tar/b.png"]
    put(f"{bucket}/s-1.tar", tar.read_bytes()[:700])
    with pytest.raises(DataError, match=r"s-1\.tar is .*; make or copy it again"):
        open_source(f"{bucket}/s-*.tar")
    with pytest.raises(DataError, match=r"there is no .*s-3\.tar; 3 files"):
        open_source(f"{bucket}/s-{{0..3}}.tar")


def test_bad_and_vanished_images_are_rows(bucket: str) -> None:
    for name, data in {"0.png": png(7), "1.png": b"text", "2.png": png(8)}.items():
        put(f"{bucket}/{name}", data)
    source = open_source(bucket)
    fsspec.filesystem("memory").rm(f"{bucket}/2.png")
    assert isinstance(source.read(0), Image.Image)
    for row in (1, 2):
        assert isinstance(found := source.read(row), Unreadable) and found.path == f"{bucket}/{row}.png"


def test_what_cannot_be_had_is_told(bucket: str) -> None:
    with pytest.raises(DataError, match=f"no images in {bucket}: give a folder that holds some, or tar shards"):
        open_source(bucket)
    with pytest.raises(DataError, match=r"^nosuch://x has the scheme nosuch, which is not read; only abfs, "):
        open_source("nosuch://x")
    with pytest.raises(DataError, match="only folders of images and tar shards"):
        open_source(f"{bucket}/list.txt")


def test_a_missing_package_is_named() -> None:
    run = "import sys; sys.modules[{absent!r}] = None; from barlowtwins.data.open import open_source; open_source('s3://b/x')"
    for absent, said in {"s3fs": "pip install s3fs", "fsspec": "pip install 'barlowtwins[shards]'"}.items():
        code = run.format(absent=absent)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert said in done.stderr.splitlines()[-1]


class Flaky(MemoryFileSystem):
    """Fails as a network does: a number of times, and then no more."""

    protocol = "flaky"
    failures = 0

    def cat_file(self, *args, **kwargs):
        if Flaky.failures > 0:
            Flaky.failures -= 1
            raise ConnectionResetError("the network is down")
        return super().cat_file(*args, **kwargs)


def test_a_failing_network_is_asked_again_and_then_ends_the_work(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(remote, "SCHEMES", remote.SCHEMES | {"flaky"})
    url = bucket.replace("memory", "flaky")
    put(f"{url}/0.png", png(5))
    source = open_source(url)
    Flaky.failures = 2
    assert shades(source) == [5]
    Flaky.failures = 3
    with pytest.raises(DataError, match=r"0\.png cannot be read: the network is down; the same command goes on"):
        source.read(0)


def test_braces_are_those_of_a_shell() -> None:
    for pattern in (
        "s-{000..011}.tar",
        "{9..11}",
        "{3..1}",
        "{a,b}{0..1}x",
        "{a,}b",
        "a{b",
        "{x}",
        "{a,{1..3}}",
        "{08..10}",
    ):
        shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
        assert set(expand(pattern)) == set(shell.stdout.splitlines()), pattern


def test_what_is_a_url() -> None:
    assert all(map(is_url, ["s3://b", "memory://x", "simplecache::s3://b/x", "abfs+x://b"]))
    assert not any(map(is_url, ["/a/b", "C:\\x", "C:/x", "a/b://c", "", "shapes:20"]))


@pytest.mark.parametrize(
    "url",
    [
        "reference://x",
        "simplecache::s3://b/x",
        "zip://x.zip::file:///x",
        "filecache::https://e.org/x.tar",
        "tar://x",
        "github://a:b@c/x",
        "dask://x",
        "dir://x",
        "jupyter://x",
        "libarchive://x.zip",
        "REFERENCE://x",
    ],
)
def test_schemes_that_do_more_than_hold_files_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_: pytest.fail("it was opened"))
    for name in (url, f"{url}/a.tar"):
        with pytest.raises(DataError, match="which is not read; only abfs"):
            open_source(name)


@pytest.mark.parametrize("pattern", ["{0..1999}{0..1999}.tar", "{0..999999999999999999}.tar", "{a,b}" * 22 + ".tar"])
def test_braces_together_stand_for_a_million_names_at_most(pattern: str) -> None:
    with pytest.raises(DataError, match=r"1,000,000 (names )?are the most"):
        expand(pattern)
    assert len(expand("{0..99}{0..99}{a,b}")) == 20_000
