"""Readers for files that others may have made: ordinary files only, within limits, every failure an `UnsoundFile`.

    read_json, parse_json   size, depth and digits limited, then compared with a schema
    csv_rows                lines and fields of limited length
    open_array              one .npy file, mapped; its shape and type are compared with the file's size
    read_arrays             an .npz archive; what it claims is compared with what is asked for

The modules turn `UnsoundFile`, which says what is wrong, into an error of theirs, which also says where and what to do.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import BarlowTwinsError

__all__ = [
    "UnsoundFile",
    "below",
    "csv_rows",
    "open_array",
    "open_regular",
    "parse_json",
    "read_arrays",
    "read_json",
    "sound",
]

MOST_JSON = 64 << 20  # bytes
DEEPEST = 40  # brackets in brackets
MOST_DIGITS = 400  # of one number; a float has 309 before its point at most
LONGEST_LINE = 1 << 20  # characters
MOST_ARRAYS = 1 << 30  # bytes of all arrays of an archive
MOST_MEMBERS = 1000


class UnsoundFile(ValueError):
    """What is wrong with a file, for the error of whoever wanted it."""


@contextlib.contextmanager
def sound() -> Iterator[None]:
    """Turn whatever a decoder raises inside into an `UnsoundFile`; only what the system says of a file passes."""
    try:
        yield
    except (UnsoundFile, BarlowTwinsError):
        raise
    except Exception as error:  # a damaged file makes decoders fail in any way there is
        if isinstance(error, OSError) and error.filename is not None:  # of opening; a decoder seeks to odd places
            raise
        said = " ".join(str(error).split())[:150]
        raise UnsoundFile(f"{type(error).__name__}: {said}" if said else type(error).__name__) from error


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading; pipes, devices and sockets are refused at once, since reading them may never end.

    Raises:
        UnsoundFile: it is not an ordinary file.
        OSError: it is missing, or cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsoundFile("it is a folder, pipe, device or socket where a file is needed")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


# JSON ---------------------------------------------------------------------------------------------------------------


def read_json(path: str | os.PathLike[str], schema: Any = None, *, most: int = MOST_JSON) -> Any:
    """The value of a JSON file.

    Args:
        path: of the file.
        schema: as for `parse_json`.
        most: bytes that the file may have.

    Raises:
        UnsoundFile: it is not an ordinary file, not JSON, or beyond a limit.
        OSError: it is missing, or cannot be read.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UnsoundFile(f"it has more than {most:,} bytes")
    return parse_json(data, schema)


def parse_json(data: bytes | str, schema: Any = None) -> Any:
    """The value of a JSON text.

    Args:
        data: UTF-8 if bytes.
        schema: what it must be, such as a TypedDict; checked by msgspec, which is not needed without one (the hub
            entries do without it). Fields that the schema does not name may be anything.

    Raises:
        UnsoundFile: it is not JSON, too deep, has a number of too many digits, or does not fit the schema.
    """
    with sound():
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        _check_depth(text)
        value = json.loads(text, parse_int=_integer)
        if schema is not None:
            import msgspec

            msgspec.convert(value, schema)
        return value


def _check_depth(text: str) -> None:
    depth = 0
    for found in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text, re.DOTALL):
        mark = found[0]
        if mark in "[{":
            depth += 1
            if depth > DEEPEST:
                raise UnsoundFile(f"its brackets are more than {DEEPEST} deep")
        elif mark in "]}":
            depth -= 1


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise UnsoundFile(f"it has a number of {len(digits):,} digits")
    return int(digits)


# CSV ----------------------------------------------------------------------------------------------------------------


def csv_rows(path: str | os.PathLike[str], *, errors: str = "surrogateescape") -> Iterator[list[str]]:
    """The rows of a CSV file, one after the other.

    Raises:
        UnsoundFile: it is not an ordinary file, or has a line or field beyond the limits.
        OSError: it is missing, or cannot be read.
    """
    with sound(), open_regular(path) as raw, io.TextIOWrapper(raw, "utf-8", errors, newline="") as file:
        yield from csv.reader(_lines(file))


def _lines(file: IO[str]) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise UnsoundFile(f"it has a line of {LONGEST_LINE:,} characters or more")
        yield line


# Arrays -------------------------------------------------------------------------------------------------------------


def open_array(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """The array of a .npy file, read-only and mapped, whose bytes are exactly those that its header claims.

    Raises:
        UnsoundFile: it is not an ordinary file, not a .npy file, holds objects, or is cut or longer than it says.
        OSError: it is missing, or cannot be read.
    """
    with sound(), open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        shape, fortran, dtype = _header(file)
        start = file.tell()
        if size - start != math.prod(shape) * dtype.itemsize:
            raise UnsoundFile(f"it has {size - start:,} bytes, which are not {shape} of {dtype}")
        if size == start:
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")


def read_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an .npz archive by name, with their checksums compared.

    Raises:
        UnsoundFile: it is not an ordinary file or not such an archive, lacks one of them, holds objects, or claims too
            much.
        OSError: it is missing, or cannot be read.
    """
    with sound(), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) > MOST_MEMBERS:
            raise UnsoundFile(f"it has more than {MOST_MEMBERS:,} members")
        if missing := next((name for name in names if f"{name}.npy" not in members), None):
            raise UnsoundFile(f"it has no array {missing!r}")
        if sum(members[f"{name}.npy"].file_size for name in names) > MOST_ARRAYS:
            raise UnsoundFile(f"its arrays claim more than {MOST_ARRAYS:,} bytes")
        return {name: _read_member(archive, members[f"{name}.npy"]) for name in names}


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsoundFile(f"its {member.filename} is packed in a way that NumPy does not use")
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        start = file.tell()
        size = math.prod(shape) * dtype.itemsize
        if member.file_size - start != size:
            raise UnsoundFile(f"its {member.filename} has {member.file_size - start:,} bytes, not {shape} of {dtype}")
        data = bytearray()
        while piece := file.read(1 << 20):  # a little at a time: a packed member may hold less than it claims
            data += piece
        if len(data) != size:  # the checksum is compared at the end of the last read
            raise UnsoundFile(f"its {member.filename} is cut")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type, from the beginning of a .npy file."""
    if file.read(6) != np.lib.format.MAGIC_PREFIX:
        raise UnsoundFile("it does not begin as a .npy file")
    version = file.read(2)
    if version not in (b"\1\0", b"\2\0"):
        raise UnsoundFile(f"it is a .npy file of version {version!r}")
    first = version == b"\1\0"
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or dtype.names or dtype.kind not in "biufcSU":
        raise UnsoundFile(f"it holds {dtype.name if not dtype.hasobject else 'objects'}, not numbers or text")
    if dtype.itemsize == 0 or not all(type(n) is int and 0 <= n < 2**48 for n in shape) or len(shape) > 8:
        raise UnsoundFile(f"its shape {str(shape)[:60]} cannot be")
    return shape, fortran, dtype


def below(root: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a folder, by its words alone: nothing is touched, and links are not followed."""
    whole = os.path.normcase(os.path.abspath(root))
    other = os.path.normcase(os.path.abspath(Path(whole) / path))
    with contextlib.suppress(ValueError):  # other drives
        return os.path.commonpath([whole, other]) == whole
    return False
