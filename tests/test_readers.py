"""The readers of files that others may have made: limits, and nothing but `UnsoundFile` whatever is in them."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest

from barlowtwins.core.readers import (
    UnsoundFile,
    below,
    csv_rows,
    open_array,
    open_regular,
    parse_json,
    read_arrays,
    read_json,
)

READERS: dict[str, Callable[[Path], Any]] = {
    "open_regular": open_regular,
    "read_json": read_json,
    "csv_rows": lambda path: list(csv_rows(path)),
    "open_array": open_array,
    "read_arrays": lambda path: read_arrays(path, ["a"]),
}
unix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on Unix only")


@unix
@pytest.mark.parametrize("name", READERS)
def test_67_pipes_sockets_devices_and_folders_are_refused_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("pipe")
        for path in ("pipe", "socket", "folder", "link", "/dev/zero", "/dev/tty"):
            started = time.perf_counter()
            with pytest.raises((UnsoundFile, OSError)):
                READERS[name](Path(path))
            assert time.perf_counter() - started < 1


class Schema(TypedDict):
    rows: int


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "JSONDecodeError"),
        (b"\xff", "UnicodeDecodeError"),
        (b"[" * 500_000, "brackets are more than 40 deep"),
        (b'{"a":' * 500_000, "brackets are more than 40 deep"),
        (b'{"rows": ' + b"7" * 5000 + b"}", "5,000 digits"),
        (b'{"rows": "3"}', "Expected `int`, got `str` - at `.rows`"),
        (b"{}", "missing required field `rows`"),
        (b"[]", "Expected `object`, got `array`"),
    ],
)
def test_json_beyond_its_limits_or_schema_is_unsound(text: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(UnsoundFile) as caught:
        read_json(path, Schema)
    assert complaint in str(caught.value).replace("$", "")


def test_json_within_them_is_what_it_says(tmp_path: Path) -> None:
    deep: Any = {"rows": 3, "more": ["[[[[", {"\\": '"['}], "large": 10**300}
    for _ in range(37):
        deep = {"rows": 1, "in": deep}
    import json

    assert parse_json(json.dumps(deep), Schema) == deep
    path = tmp_path / "x.json"
    path.write_text(json.dumps([1] * 50))
    with pytest.raises(UnsoundFile, match="more than 100 bytes"):
        read_json(path, most=100)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a" * (2 << 20), "a line of 1,048,576 characters or more"),
        ('"' + "a" * 200_000 + '"\n', "field larger than field limit"),
        ('"' + "a\n" * 100_000, "field larger than field limit"),
    ],
)
def test_csv_beyond_its_limits_is_unsound(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UnsoundFile, match=complaint):
        list(csv_rows(path))


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


WHOLE = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_arrays_are_what_was_written(tmp_path: Path) -> None:
    for number, array in enumerate(
        [WHOLE, np.asfortranarray(WHOLE), np.empty((0, 4), np.float32), np.float32(3), np.array(["a", "bc"])]
    ):
        path = tmp_path / f"{number}.npy"
        path.write_bytes(npy(array))
        read = open_array(path)
        assert np.array_equal(read, array) and read.dtype == array.dtype and not (read.size and read.flags.writeable)
        (tmp_path / "a.npz").write_bytes(npz(a=array, b=WHOLE))
        assert np.array_equal(read_arrays(tmp_path / "a.npz", ["a"])["a"], array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUM",
        npy(WHOLE)[:-1],
        npy(WHOLE) + b"x",
        npy(WHOLE).replace(b"(3, 4)", b"(9, 4)"),
        npy(WHOLE).replace(b"(3, 4)", b"(-3,4)"),
        npy(WHOLE).replace(b"<f4", b"<O4"),
        npy(np.array([{}], object)),
        npy(np.zeros(2, [("a", "f4")])),
        npy(WHOLE).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{}",
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"[" * 9000,
        npz(a=WHOLE),
    ],
)
def test_files_that_are_not_sound_arrays(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(UnsoundFile):
        open_array(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", data)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UnsoundFile):
        read_arrays(path, ["a"])


def test_archives_that_claim_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz(a=WHOLE))
    with pytest.raises(UnsoundFile, match="no array 'b'"):
        read_arrays(path, ["a", "b"])
    monkeypatch.setattr("barlowtwins.core.readers.MOST_ARRAYS", 100)
    with pytest.raises(UnsoundFile, match="claim more than 100"):
        read_arrays(path, ["a"])
    monkeypatch.setattr("barlowtwins.core.readers.MOST_MEMBERS", 0)
    with pytest.raises(UnsoundFile, match="more than 0 members"):
        read_arrays(path, ["a"])


def test_every_flipped_bit_of_an_archive_is_found_or_without_effect(tmp_path: Path) -> None:
    whole, path = npz(a=WHOLE), tmp_path / "x.npz"
    refused = 0
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = read_arrays(path, ["a"])["a"]
        except UnsoundFile:
            refused += 1
        else:
            assert np.array_equal(found, WHOLE)
    assert refused > 4 * len(whole)


def test_a_path_below_a_folder_is_told_by_its_words(tmp_path: Path) -> None:
    for inside in ("a.png", "a/../b.png", "a/b/c", "", "..a"):
        assert below(tmp_path, inside)
    for outside in ("../x", "a/../../x", "/etc/passwd", f"{tmp_path}-more/x", ".."):
        assert not below(tmp_path, outside)
