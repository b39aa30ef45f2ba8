"""The contents of a weight file, without running anything that is in it.

Two containers are told apart by their first bytes: what `torch.save` writes (read by `core.torch_file`, which knows
tensors and plain data and calls nothing), and safetensors (a JSON header and raw numbers).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from barlowtwins.core.errors import WeightsError
from barlowtwins.core.readers import open_regular
from barlowtwins.core.torch_file import ForeignClass, UnsoundFile, read_torch_file

__all__ = ["Contents", "read_weight_file"]

LONGEST_HEADER = 16 << 20  # bytes; that of a ResNet-50 takes 30 kB
MOST_DIMENSIONS = 8


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Contents:
    """What a weight file holds.

    Args:
        value: a mapping of names to tensors, or whatever else plain data was saved.
        metadata: safetensors' own strings; empty for a pickle.
    """

    value: Any
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_weight_file(path: Path) -> Contents:
    """Read a weight file of either container onto the CPU.

    Raises:
        WeightsError: it is missing, damaged or no weight file, or it needs a class that is not on the list; the
            message names that class. Nothing of the file was run.
    """
    try:
        with open_regular(path) as file:
            start = file.read(9)
            if start[8:] == b"{":
                return _read_safetensors(file, path)
            if start[:2] == b"PK" or start[:1] == b"\x80":
                return Contents(_read_pickle(file, path))
    except FileNotFoundError:
        raise WeightsError(f"there is no weight file {path}; give an existing one") from None
    except UnsoundFile as error:
        raise WeightsError(f"{path} is not a weight file: {error}; give one") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}; make it readable") from error
    if not start:
        raise WeightsError(f"{path} is empty (0 bytes); fetch or copy it again")
    raise WeightsError(
        f"{path} is not a weight file: it begins with {start!r}, neither as torch.save nor as safetensors "
        f"write; fetch or copy it again"
    )


# torch.save -----------------------------------------------------------------------------------------------------------


def _read_pickle(file: IO[bytes], path: Path) -> Any:
    try:
        return read_torch_file(file)
    except ForeignClass as error:
        raise WeightsError(
            f"{path} holds {error}, which is neither a tensor nor plain data and could run code: refused. "
            "Ask its maker for the state dict alone, best as safetensors"
        ) from error
    except UnsoundFile as error:
        raise WeightsError(f"{path} is damaged or not a weight file ({error}); fetch or copy it again") from error


# safetensors ----------------------------------------------------------------------------------------------------------


def _read_safetensors(file: IO[bytes], path: Path) -> Contents:
    """Little-endian length of the header (8 bytes), header (JSON), then the numbers; every claim is checked first."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        if length > LONGEST_HEADER:
            raise WeightsError(f"its header claims {length:,} bytes; {LONGEST_HEADER:,} are allowed")
        if length > size - 8:
            raise WeightsError(f"its header claims {length:,} bytes and the file has {size:,}; it is cut short")
        header = _parse_header(file.read(length))
        metadata = header.pop("__metadata__", {})
        if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
            raise WeightsError("its metadata is not made of strings")
        entries = {name: _Entry.parse(name, claim) for name, claim in header.items()}
        _check_spans(entries, size - 8 - length)
        return Contents({name: entry.read(file, 8 + length) for name, entry in entries.items()}, metadata)
    except WeightsError as error:
        raise WeightsError(f"{path} is not sound safetensors: {error}; fetch or copy it again") from error


def _parse_header(text: bytes) -> dict[str, Any]:
    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise WeightsError(f"its header has the key {next(n for n in names if names.count(n) > 1)!r} twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=refuse_twice)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise WeightsError("its header is no JSON object")
    return header


@dataclass(frozen=True)
class _Entry:
    """One tensor as the header describes it: its numbers are the bytes from `begin` to `end` of the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def parse(cls, name: str, claim: Any) -> _Entry:
        try:
            dtype, shape, (begin, end) = DTYPES[claim["dtype"]], tuple(claim["shape"]), claim["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"the entry of {name!r} is not understood: {str(claim)[:100]}") from error
        numbers = (*shape, begin, end)
        if not all(type(number) is int and 0 <= number < 2**48 for number in numbers) or len(shape) > MOST_DIMENSIONS:
            raise WeightsError(f"{name!r} has shape {shape} and offsets {begin, end}, which cannot be")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise WeightsError(f"{name!r} has {end - begin} bytes, which do not hold {shape} numbers of {dtype}")
        return cls(dtype, shape, begin, end)

    def read(self, file: IO[bytes], data_start: int) -> Tensor:
        if self.begin == self.end:
            return torch.empty(self.shape, dtype=self.dtype)
        buffer = bytearray(self.end - self.begin)
        file.seek(data_start + self.begin)
        if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise WeightsError("it became shorter while it was read")
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(self.shape)


def _check_spans(entries: Mapping[str, _Entry], size: int) -> None:
    """The tensors must fill the data exactly, each byte belonging to one of them."""
    filled, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != filled:
            how = "overlaps" if entry.begin < filled else "leaves a hole after"
            raise WeightsError(f"{name!r} (bytes {entry.begin} to {entry.end}) {how} {before!r}")
        filled, before = entry.end, name
    if filled != size:
        raise WeightsError(f"its tensors take {filled:,} bytes and {size:,} are there; it is cut short or not whole")
