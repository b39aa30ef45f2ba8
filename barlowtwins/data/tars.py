"""Tar archives as a source of images: each is read once from header to header, then any image by offset and size.

Row order: archives sorted by their names (code points), and in each the order of the archive. So a set of shards has
the same rows however it is named (braces, wildcards), and an archive more whose name sorts last only adds rows.

| in the archive | becomes |
|---|---|
| a regular file with an image suffix | a row, whose key is "archive.tar/name in it" |
| `x.cls` or `x.json` beside `x.jpg` (WebDataset) | its label: the text, or "label" or "cls" of the JSON object |
| no such labels, but every image in a folder | labels, as of a folder of class folders |
| hidden names, links, devices, other files | nothing |
"""

# N images in T archives

from __future__ import annotations

import itertools
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import IO

import numpy as np
from PIL import Image

from barlowtwins.core.errors import DataError
from barlowtwins.data.images import IMAGE_SUFFIXES, Unreadable, read_image
from barlowtwins.data.listing import top_folders
from barlowtwins.data.remote import absolute, fingerprint_of, is_hidden, matching, named, open_file, read_range
from barlowtwins.data.sources import PackedStrings, Source, number_classes

__all__ = ["TarSource", "is_tar"]

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
THREADS = 8  # archives that are read at once: behind a URL, most of the time is waiting
MOST_LABEL_BYTES = 1 << 20  # of a .cls or .json file


def is_tar(name: str) -> bool:
    """Whether `name` means tar archives, by its suffix.

    Raises:
        DataError: compressed ones.
    """
    if name.lower().endswith(PACKED):
        raise DataError(f"{name} is compressed, so no image in it can be read alone; unpack it to a plain .tar")
    return name.lower().endswith(".tar")


class TarSource(Source):
    """The images in tar archives.

    Args:
        pattern: one archive or several, such as "train-{000..009}.tar", "train-*.tar", or behind a URL of fsspec.

    Raises:
        DataError: an archive is missing, cut or damaged, or names a file outside itself; there is no image; or only
            some have labels.
    """

    def __init__(self, pattern: str) -> None:
        self.name = pattern
        self._tars = [absolute(name) for name in matching(pattern)]
        with ThreadPoolExecutor(THREADS) as pool:
            indices = list(pool.map(_read_index, self._tars))
        names = [name for index in indices for name in index.names]
        if not names:
            raise DataError(f"no images in {pattern}: {len(self._tars)} archives hold none by suffix; give others")
        self._ends = np.cumsum([len(index.names) for index in indices])  # (T,) rows up to the end of each
        self._offsets = np.array([offset for index in indices for offset in index.offsets], np.int64)  # (N,)
        self._sizes = np.array([size for index in indices for size in index.sizes], np.int64)  # (N,)
        prefixes = _shortest(self._tars)
        self._keys = PackedStrings(
            f"{prefix}/{name}" for prefix, index in zip(prefixes, indices, strict=True) for name in index.names
        )
        self.classes, self.labels = number_classes(_labels(pattern, indices, names))

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def read(self, index: int) -> Image.Image | Unreadable:
        row = range(len(self))[index]
        tar = self._tars[int(np.searchsorted(self._ends, row, side="right"))]
        size = int(self._sizes[row])
        try:
            data = read_range(tar, int(self._offsets[row]), size)
        except OSError as error:  # not one bad image: all of an archive would become NaN
            raise DataError(f"{tar} cannot be read any more ({error.strerror or error}); bring it back") from error
        if len(data) < size:
            return Unreadable(self.key(row), f"the archive has only {len(data):,} of its {size:,} bytes")
        return named(read_image(data), self.key(row))

    def fingerprint(self) -> str:
        return fingerprint_of(self, self._sizes)


@dataclass
class _Index:
    """The images of one archive, n of them."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    """By the name up to its first dot."""

    def label(self, name: str) -> str | None:
        return self.labels.get(_stem(name))


def _read_index(tar: str) -> _Index:
    index = _Index()
    try:
        with open_file(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                _take(member, tar, file, index)
                archive.members.clear()  # type: ignore[attr-defined]  # they would grow with the archive
            _require_end(file, archive.offset, tar)
    except tarfile.TarError as error:
        raise DataError(f"{tar} is no whole tar archive ({error}); make or copy it again") from error
    except OSError as error:
        raise DataError(f"cannot read {tar}: {error.strerror or error}; make it readable") from error
    return index


def _take(member: tarfile.TarInfo, tar: str, file: IO[bytes], index: _Index) -> None:
    """Note a member of the archive if it is an image or a label."""
    windows = PureWindowsPath(member.name)  # splits at both kinds of slashes
    if member.name.startswith(("/", "\\")) or windows.is_absolute() or ".." in windows.parts:
        raise DataError(f"{tar} names {member.name!r}, outside of itself; refused, make it with relative names")
    name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
    suffix = os.path.splitext(name)[1].lower()
    if not member.isreg() or is_hidden(name):
        return
    if suffix in IMAGE_SUFFIXES:
        if member.issparse():
            raise DataError(f"{tar} holds {name} as a sparse file; make it again without --sparse")
        index.names.append(name)
        index.offsets.append(member.offset_data)
        index.sizes.append(member.size)
    elif suffix in (".cls", ".json") and member.size <= MOST_LABEL_BYTES:
        file.seek(member.offset_data)  # tarfile seeks before each header
        label = _label(file.read(member.size), suffix, f"{tar}/{name}")
        if label is not None:
            index.labels[_stem(name)] = label


def _label(data: bytes, suffix: str, name: str) -> str | None:
    try:
        if suffix == ".cls":
            return data.decode("utf-8").strip()
        content = json.loads(data)
    except ValueError as error:
        raise DataError(f"{name} cannot be read as a label: {error}; it must be UTF-8 text, or JSON") from error
    label = next((content[key] for key in ("label", "cls") if key in content), None) if type(content) is dict else None
    return str(label) if isinstance(label, (str, int)) else None


def _stem(name: str) -> str:
    """What WebDataset calls the key of a sample: the path up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _require_end(file: IO[bytes], offset: int, tar: str) -> None:
    """`tarfile` takes a damaged or cut header for the end; an archive ends in a block of zeros."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{tar} is cut or damaged at byte {offset:,}: its end mark is missing; make or copy it again")


def _labels(pattern: str, indices: Sequence[_Index], names: Sequence[str]) -> list[str] | None:
    """A label for each image, or None."""
    labels = [index.label(name) for index in indices for name in index.names]
    known = [label for label in labels if label is not None]
    if not known:
        return top_folders(names)
    if len(known) < len(labels):
        first = names[labels.index(None)]
        raise DataError(
            f"{len(labels) - len(known)} of {len(labels)} images in {pattern} have no label, first {first}; label "
            f"all or none"
        )
    return known


def _shortest(names: Sequence[str]) -> list[str]:
    """Names relative to the deepest folder that holds them all."""
    parts = [name.split("/") for name in names]
    shared = itertools.takewhile(
        lambda column: len(set(column)) == 1, zip(*(part[:-1] for part in parts), strict=False)
    )
    depth = sum(1 for _ in shared)
    return ["/".join(part[depth:]) for part in parts]
