"""An EMB folder on disk: the embeddings in one of three formats, `index.csv` and `meta.json`. Write it, open it.

Row k of every file is image k of the sorted source. Everything is written block by block and opened memory-mapped
(Parquet apart), so that a million rows do not need a million rows of memory.
"""

# N rows, n of them in a block, D features

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import DataError, MissingExtraError
from barlowtwins.core.readers import UnsoundFile, csv_rows, open_array, open_regular, read_json, sound
from barlowtwins.core.safetensors_file import encode_header, read_header
from barlowtwins.embedding.meta import Layout, Meta

__all__ = [
    "FILES",
    "INDEX",
    "META",
    "OK",
    "Block",
    "Embeddings",
    "IndexRow",
    "is_embeddings",
    "open_embeddings",
    "read_index",
    "require_format",
    "row_writer",
    "write_features",
    "write_index",
]

FILES = {"npy": "embeddings.npy", "parquet": "embeddings.parquet", "safetensors": "embeddings.safetensors"}
INDEX = "index.csv"
META = "meta.json"  # written last: a folder that has it is complete
LAYOUT = 1  # version of these files
OK = "ok"  # status of a row that holds features; any other says why it is NaN

PATH_ERRORS = "surrogateescape"  # a path need not be valid Unicode: its bytes are kept


class IndexRow(NamedTuple):
    """One line of `index.csv`."""

    row: int
    path: str
    label: str
    """Class name; empty if unlabeled."""
    status: str


class Block(NamedTuple):
    """Consecutive rows on their way to a file."""

    features: npt.NDArray[np.float32]
    """(n, D)"""
    entries: list[IndexRow]
    """n of them."""


@dataclass(frozen=True)
class Embeddings:
    """A complete EMB folder."""

    folder: Path
    meta: dict[str, Any]
    features: npt.NDArray[np.float32]
    """(N, D), read-only; memory-mapped unless the format is Parquet."""

    def index(self) -> Iterator[IndexRow]:
        """The lines of `index.csv`, one by one."""
        return read_index(self.folder / INDEX, self.meta["rows"])


def is_embeddings(folder: str | Path) -> bool:
    """Whether `folder` is a complete EMB folder."""
    return (Path(folder) / META).is_file() and (Path(folder) / INDEX).is_file()


def open_embeddings(folder: str | Path) -> Embeddings:
    """Open an EMB folder without reading its rows.

    Raises:
        DataError: it is none, is not complete, or its files do not fit each other.
        MissingExtraError: it is in Parquet and pyarrow is not installed.
    """
    folder = Path(folder)
    if not is_embeddings(folder):
        unfinished = " (embedding into it has not finished: run that command again)" if folder.is_dir() else ""
        raise DataError(f"{folder} is not a folder that `barlowtwins embed` has made{unfinished}; give one that it has")
    try:
        layout = read_json(folder / META, Layout)["layout"]
        if layout > LAYOUT:
            raise DataError(f"{folder} was made by a newer barlowtwins; this one reads layout {LAYOUT}")
        meta = Record(folder, read_json(folder / META, Meta))
        rows, dim = meta["rows"], meta["dim"]
        if 2 * (len(IndexRow._fields) - 1) * rows > (folder / INDEX).stat().st_size:  # before memory is taken
            raise UnsoundFile(f"{INDEX} is too short for {rows:,} rows")
        with sound():
            features = _READERS[meta["format"]](folder / FILES[meta["format"]], rows, dim)
        if features.shape != (rows, dim) or features.dtype != np.float32:
            raise UnsoundFile(f"the embeddings are {features.dtype} {features.shape}, not {rows, dim}")
    except (UnsoundFile, OSError) as error:
        raise DataError(f"the embeddings in {folder} are damaged: {error}; embed again with --overwrite") from error
    return Embeddings(folder, meta, features)


class Record(dict[str, Any]):
    """What `meta.json` says; a field that it lacks is an error of the folder, not of the code that asks."""

    def __init__(self, folder: Path, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.folder = folder

    def __missing__(self, name: str) -> Any:
        raise DataError(f"{self.folder / META} does not say {name!r}; embed again with --overwrite")


def write_features(file: IO[bytes], form: str, blocks: Iterable[Block], rows: int, dim: int) -> None:
    """Write the embeddings (rows, dim) into a binary file, a block at a time.

    Args:
        file: an open file, such as `atomic_write` gives.
        form: a key of `FILES`.
        blocks: all rows in order.
        rows, dim: known beforehand, since the file header has them.

    Raises:
        MissingExtraError: "parquet" without pyarrow.
    """
    _WRITERS[form](file, blocks, rows, dim)


def write_index(file: IO[bytes], entries: Iterable[IndexRow]) -> None:
    """Write the lines of `index.csv` into a binary file."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors=PATH_ERRORS, newline="")
    write_row = row_writer(text)
    write_row(IndexRow._fields)
    for entry in entries:
        write_row(entry)
    text.detach()  # flushes, and leaves the file open


def row_writer(text: IO[str]) -> Callable[[Iterable[object]], object]:
    """What writes a row of a CSV file, so that it reads back whole whatever is in it."""
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # Python before 3.13 does not quote for a \r

    def write_row(row: Iterable[object]) -> object:
        values = [as_text(value) if isinstance(value, str) else value for value in row]
        return (quoted if any(isinstance(value, str) and "\r" in value for value in values) else plain).writerow(values)

    return write_row


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def as_text(value: str) -> str:
    """A cell that no spreadsheet takes for a formula: one that begins with = + - @ gets a quote before it."""
    return f"'{value}" if _FORMULA.match(value) else value


def as_data(value: str) -> str:
    """What `as_text` was given."""
    return value[1:] if value.startswith("'") and _FORMULA.match(value) else value


def read_index(path: Path, rows: int | None = None) -> Iterator[IndexRow]:
    """Read `index.csv` line by line.

    Args:
        path: of the file.
        rows: how many it must have; None: as many as there are.

    Raises:
        DataError: the file is not as `write_index` made it.
    """
    expected = 0
    try:
        lines = csv_rows(path)
        if tuple(next(lines, ())) != IndexRow._fields:
            raise DataError(
                f"{path} does not begin with the line {','.join(IndexRow._fields)}; embed again (--overwrite)"
            )
        for expected, line in enumerate(lines):
            if len(line) != len(IndexRow._fields) or line[0] != str(expected):
                shown = str(line)[:200]
                raise DataError(f"{path} is damaged: the entry of row {expected} is {shown}; embed again (--overwrite)")
            yield IndexRow(expected, *map(as_data, line[1:]))
            expected += 1
    except (UnsoundFile, OSError) as error:
        raise DataError(f"{path} is damaged: {error}; embed again (--overwrite)") from error
    if rows is not None and expected != rows:
        raise DataError(f"{path} is damaged: it has {expected:,} rows of {rows:,}; embed again (--overwrite)")


def require_format(form: str) -> None:
    """Raise MissingExtraError now, rather than after hours, if `form` needs what is not installed."""
    if form == "parquet":
        _pyarrow()


# One writer and one reader a format ---------------------------------------------------------------------------------


def _write_npy(file: IO[bytes], blocks: Iterable[Block], rows: int, dim: int) -> None:
    head = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, head)
    for block in blocks:
        file.write(block.features.astype("<f4", copy=False).tobytes())


def _read_npy(path: Path, rows: int, dim: int) -> npt.NDArray[np.float32]:
    return open_array(path)


def _write_safetensors(file: IO[bytes], blocks: Iterable[Block], rows: int, dim: int) -> None:
    file.write(encode_header({"embeddings": ("F32", (rows, dim))}, {"format": "pt"}))
    for block in blocks:
        file.write(block.features.astype("<f4", copy=False).tobytes())


def _read_safetensors(path: Path, rows: int, dim: int) -> npt.NDArray[np.float32]:
    with open_regular(path) as file:
        header = read_header(file)
        found = header.entries.get("embeddings")
        if found != ("F32", (rows, dim), 0, 4 * rows * dim):
            raise UnsoundFile(f"it says {str(found)[:100]}, not {rows, dim}")
        return np.memmap(file, "<f4", "r", header.start, (rows, dim)) if rows else np.empty((rows, dim), np.float32)


def _write_parquet(file: IO[bytes], blocks: Iterable[Block], rows: int, dim: int) -> None:
    """One row group a block; beside the features all columns of the index, so that the file serves alone."""
    arrow, parquet = _pyarrow()
    names = [(name, arrow.int64() if name == "row" else arrow.string()) for name in IndexRow._fields]
    schema = arrow.schema([*names, ("embedding", arrow.list_(arrow.float32(), dim))])
    with parquet.ParquetWriter(file, schema) as writer:
        for block in blocks:
            columns = [
                arrow.array([_valid(value) for value in column], kind)
                for column, (_, kind) in zip(zip(*block.entries, strict=True), names, strict=True)
            ]
            features = arrow.FixedSizeListArray.from_arrays(block.features.ravel(), dim)
            writer.write_table(arrow.Table.from_arrays([*columns, features], schema=schema))


def _read_parquet(path: Path, rows: int, dim: int) -> npt.NDArray[np.float32]:
    arrow, parquet = _pyarrow()
    with open_regular(path) as raw, parquet.ParquetFile(raw) as file:
        kind = file.schema_arrow.field("embedding").type
        if kind != arrow.list_(arrow.float32(), dim) or file.metadata.num_rows != rows:
            raise UnsoundFile(f"it has {file.metadata.num_rows:,} rows of {kind}, not {rows, dim}")
        column = file.read(columns=["embedding"], use_threads=False).column("embedding").combine_chunks()
        return column.flatten().to_numpy().reshape(rows, dim)


def _valid(value: int | str) -> int | str:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "parquet") from None
    return pyarrow, pyarrow.parquet


_WRITERS: dict[str, Callable[[IO[bytes], Iterable[Block], int, int], None]] = {
    "npy": _write_npy,
    "parquet": _write_parquet,
    "safetensors": _write_safetensors,
}
_READERS: dict[str, Callable[[Path, int, int], npt.NDArray[np.float32]]] = {
    "npy": _read_npy,
    "parquet": _read_parquet,
    "safetensors": _read_safetensors,
}
