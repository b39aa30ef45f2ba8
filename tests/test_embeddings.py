"""The files of an EMB folder, read back by the libraries that users will read them with."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from barlowtwins.core.errors import DataError
from barlowtwins.embedding.embeddings import (
    FILES,
    INDEX,
    META,
    OK,
    Block,
    IndexRow,
    open_embeddings,
    read_index,
    write_features,
    write_index,
)

ROWS, DIM = 11, 5
NAMES = ["plain.jpg", "with, comma.png", 'with "quotes".png', "two\nlines.png", "日本.jpg", "bytes-\udcff.jpg"]


def features() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    values[3] = np.nan
    return values


def entries() -> list[IndexRow]:
    return [
        IndexRow(
            row, NAMES[row % len(NAMES)], "T-shirt/top" if row % 2 else "", OK if row != 3 else "the file is empty"
        )
        for row in range(ROWS)
    ]


def blocks() -> Iterator[Block]:
    for start in range(0, ROWS, 4):
        yield Block(features()[start : start + 4], entries()[start : start + 4])


def write_lines(folder: Path, lines: list[IndexRow]) -> None:
    with open(folder / INDEX, "wb") as file:
        write_index(file, lines)


def write_folder(folder: Path, form: str) -> Path:
    with open(folder / FILES[form], "wb") as file:
        write_features(file, form, blocks(), ROWS, DIM)
    write_lines(folder, entries())
    (folder / META).write_text(json.dumps({"layout": 1, "format": form, "rows": ROWS, "dim": DIM}))
    return folder


@pytest.mark.parametrize("form", ["npy", "parquet", "safetensors"])
def test_what_is_written_is_read_back(tmp_path: Path, form: str) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    opened = open_embeddings(write_folder(tmp_path, form))
    np.testing.assert_array_equal(opened.features, features())
    assert list(opened.index()) == entries()


def test_npy_is_memory_mapped_and_plain_numpy_reads_it(tmp_path: Path) -> None:
    write_folder(tmp_path, "npy")
    np.testing.assert_array_equal(np.load(tmp_path / "embeddings.npy"), features())
    opened = open_embeddings(tmp_path).features
    assert isinstance(opened, np.memmap) and not opened.flags.writeable


def test_safetensors_library_reads_it(tmp_path: Path) -> None:
    write_folder(tmp_path, "safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "embeddings.safetensors")["embeddings"], features())
    assert isinstance(open_embeddings(tmp_path).features, np.memmap)


def test_parquet_serves_alone(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_folder(tmp_path, "parquet")
    table = parquet.read_table(tmp_path / "embeddings.parquet").to_pydict()
    assert table["row"] == list(range(ROWS))
    assert table["path"][:5] == NAMES[:5] and table["path"][5] == "bytes-\\udcff.jpg"
    assert table["label"] == [entry.label for entry in entries()]
    assert table["status"] == [entry.status for entry in entries()]
    np.testing.assert_array_equal(np.array(table["embedding"], dtype=np.float32), features())


def test_the_index_is_a_csv_file_that_others_read(tmp_path: Path) -> None:
    write_lines(tmp_path, entries())
    with open(tmp_path / INDEX, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [entry.path for entry in entries()]
    assert (tmp_path / INDEX).read_bytes().count(b"bytes-\xff.jpg") == 1  # the file's own name, byte for byte


@pytest.mark.parametrize("form", ["npy", "parquet", "safetensors"])
def test_damage_is_told(tmp_path: Path, form: str) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    file = write_folder(tmp_path, form) / FILES[form]
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"are damaged: .*; embed again with --overwrite"):
        open_embeddings(tmp_path)


def test_safetensors_of_other_numbers_or_a_key_given_twice_are_refused(tmp_path: Path) -> None:
    file = write_folder(tmp_path, "safetensors") / FILES["safetensors"]
    whole = file.read_bytes()
    assert whole.count(b'"shape":[11,5]') == 1
    file.write_bytes(whole.replace(b'"shape":[11,5]', b'"shape":[5,11]'))  # as many numbers, in other rows
    with pytest.raises(DataError, match=r"damaged: it says .*\(5, 11\).*, not \(11, 5\)"):
        open_embeddings(tmp_path)
    file.write_bytes(whole.replace(b'"format":"pt"', b'"f":"","f":""'))
    with pytest.raises(DataError, match="damaged: its header has the key 'f' twice"):
        open_embeddings(tmp_path)


def test_a_folder_that_is_none_or_newer_or_of_other_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder that `barlowtwins embed` has made"):
        open_embeddings(tmp_path)
    write_folder(tmp_path, "npy")
    meta = json.loads((tmp_path / META).read_text())
    (tmp_path / META).write_text(json.dumps(meta | {"rows": ROWS + 1}))
    with pytest.raises(DataError, match=r"float32 \(11, 5\), not \(12, 5\)"):
        open_embeddings(tmp_path)
    (tmp_path / META).write_text(json.dumps(meta | {"layout": 99}))
    with pytest.raises(DataError, match="newer barlowtwins"):
        open_embeddings(tmp_path)
    (tmp_path / META).write_text(json.dumps(meta | {"format": "hdf5"}))
    with pytest.raises(DataError, match="damaged"):
        open_embeddings(tmp_path)


def test_a_damaged_index_is_told_with_its_row(tmp_path: Path) -> None:
    write_lines(tmp_path, [*entries()[:2], *entries()[3:]])
    with pytest.raises(DataError, match="entry of row 2 is"):
        list(read_index(tmp_path / INDEX))
    (tmp_path / INDEX).write_text("a,b\n")
    with pytest.raises(DataError, match="does not begin with the line row,path,label,status"):
        list(read_index(tmp_path / INDEX))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="measures one process by its own peak memory, POSIX only")
def test_an_index_that_is_not_csv_is_told(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_bytes(b"row,path,label,status\n0," + b"a" * (1 << 20) + b".png,,ok\n")
    with pytest.raises(DataError, match=r"index\.csv is damaged: .*; embed again \(--overwrite\)"):
        list(read_index(tmp_path / "index.csv", None))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """205 MB of rows are written in the same memory as 20 MB are."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from barlowtwins.embedding.embeddings import Block, IndexRow, write_features, write_index

rows, size = int(sys.argv[1]), 2000
block = np.zeros((size, 256), np.float32)
def blocks():
    for start in range(0, rows, size):
        yield Block(block, [IndexRow(row, f"{row}.png", "", "ok") for row in range(start, start + size)])
with open(sys.argv[2], "wb") as file:
    write_features(file, "npy", blocks(), rows, 256)
with open(sys.argv[2] + ".csv", "wb") as file:
    write_index(file, (entry for part in blocks() for entry in part.entries))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for rows in (20_000, 200_000):
        command = [sys.executable, "-c", code, str(rows), str(tmp_path / "embeddings.npy")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout))
    assert (tmp_path / "embeddings.npy").stat().st_size > 200_000 * 1024
    assert peaks[1] - peaks[0] < 20_000  # kB
