"""Safetensors, read and written: the length of a header, the header in JSON, and the numbers.

All by hand, because the `safetensors` library takes a header with a key given twice or of 100 MB, writes no tensor in
pieces and its metadata in any order, and is not among what the hub needs. The tests compare with it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from barlowtwins.core.files import atomic_write
from barlowtwins.core.readers import UnsoundFile

if TYPE_CHECKING:  # embeddings are read and written without torch
    import torch
    from torch import Tensor

__all__ = ["Entry", "encode_header", "read_header", "read_safetensors", "write_safetensors"]

LONGEST_HEADER = 16 << 20  # bytes; that of a ResNet-50 takes 30 kB
MOST_DIMENSIONS = 8

DTYPES = {  # torch's name and the bytes of a number, in the order in which files hold them
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


class Entry(NamedTuple):
    """One tensor as the header describes it: its numbers are the bytes from `begin` to `end` of the data."""

    dtype: str
    """A key of `DTYPES`."""
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What comes before the numbers."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    start: int
    """Place in the file at which the data begin."""


# Write ----------------------------------------------------------------------------------------------------------------


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors atomically, from whatever device they are on.

    The same tensors and strings make the same bytes, so that a digest says whether two files are one.

    Args:
        path: the file.
        tensors: by name.
        metadata: strings that say what they are.
        dtype: of the floating-point ones; float32 by default.

    Raises:
        OutputError: the file cannot be written.
    """
    import torch

    codes = {getattr(torch, name): code for code, (name, _) in DTYPES.items()}
    floats = dtype or torch.float32
    kinds = {key: floats if value.is_floating_point() else value.dtype for key, value in tensors.items()}
    order = sorted(tensors, key=lambda key: (list(codes).index(kinds[key]), key))
    shapes = {key: (codes[kinds[key]], tuple(tensors[key].shape)) for key in order}
    with atomic_write(path) as file:
        file.write(encode_header(shapes, metadata))
        for key in order:
            plain = tensors[key].detach().to("cpu", kinds[key]).contiguous()
            file.write(plain.reshape(-1).view(torch.uint8).numpy())


def encode_header(shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """All that comes before the numbers of tensors that follow each other in this order.

    Args:
        shapes: the key of `DTYPES` and the shape of each.
        metadata: strings that say what they are.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for key, (code, shape) in shapes.items():
        begin, end = end, end + math.prod(shape) * DTYPES[code][1]
        header[key] = {"dtype": code, "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    return len(text).to_bytes(8, "little") + text


# Read -----------------------------------------------------------------------------------------------------------------


def read_safetensors(file: IO[bytes]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of an open file, on the CPU, and its metadata.

    Raises:
        UnsoundFile: as `read_header`, or the file became shorter meanwhile.
    """
    import torch

    def read(entry: Entry) -> Tensor:
        dtype = getattr(torch, DTYPES[entry.dtype][0])
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=dtype)
        buffer = bytearray(entry.end - entry.begin)
        file.seek(header.start + entry.begin)
        if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise UnsoundFile("it became shorter while it was read")
        return torch.frombuffer(buffer, dtype=dtype).reshape(entry.shape)

    header = read_header(file)
    return {name: read(entry) for name, entry in header.entries.items()}, header.metadata


def read_header(file: IO[bytes]) -> Header:
    """The header of an open file, every claim of which is checked.

    Raises:
        UnsoundFile: it is too long, not JSON, names something twice, or its tensors do not fill the file exactly.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_HEADER:
        raise UnsoundFile(f"its header claims {length:,} bytes; {LONGEST_HEADER:,} are allowed")
    if length > size - 8:
        raise UnsoundFile(f"its header claims {length:,} bytes and the file has {size:,}; it is cut short")
    header = _parse_json(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise UnsoundFile("its metadata is not made of strings")
    entries = {name: _parse_entry(name, claim) for name, claim in header.items()}
    _check_spans(entries, size - 8 - length)
    return Header(entries, metadata, 8 + length)


def _parse_json(text: bytes) -> dict[str, Any]:
    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise UnsoundFile(f"its header has the key {next(n for n in names if names.count(n) > 1)!r} twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=refuse_twice)
    except UnsoundFile:
        raise
    except (ValueError, RecursionError) as error:
        raise UnsoundFile(f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise UnsoundFile("its header is not a JSON object")
    return header


def _parse_entry(name: str, claim: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = claim["dtype"], tuple(claim["shape"]), claim["data_offsets"]
        itemsize = DTYPES[dtype][1]
    except (KeyError, TypeError, ValueError) as error:
        raise UnsoundFile(f"the entry of {name!r} is not understood: {str(claim)[:100]}") from error
    numbers = (*shape, begin, end)
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers) or len(shape) > MOST_DIMENSIONS:
        raise UnsoundFile(f"{name!r} has shape {shape} and offsets {begin, end}, which cannot be")
    if end - begin != math.prod(shape) * itemsize:
        raise UnsoundFile(f"{name!r} has {end - begin} bytes, which do not hold {shape} numbers of {dtype}")
    return Entry(dtype, shape, begin, end)


def _check_spans(entries: Mapping[str, Entry], size: int) -> None:
    """The tensors must fill the data exactly, each byte belonging to one of them."""
    filled, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != filled:
            how = "overlaps" if entry.begin < filled else "leaves a hole after"
            raise UnsoundFile(f"{name!r} (bytes {entry.begin} to {entry.end}) {how} {before!r}")
        filled, before = entry.end, name
    if filled != size:
        raise UnsoundFile(f"its tensors take {filled:,} bytes and {size:,} are there; it is cut short or not whole")
