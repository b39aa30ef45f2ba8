"""What images come from: files, an array, or some of another source's.

Every source counts its images 0..N-1 and reads one by its number, in any process: sources are pickled to workers.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from barlowtwins.core.errors import DataError
from barlowtwins.data.images import Unreadable, read_image, to_rgb

__all__ = ["ArraySource", "FileSource", "ItemSource", "Source", "SubsetSource", "number_classes"]

# N images, H x W their height and width, C channels


class Source(ABC):
    """N images, each with a key and perhaps a label."""

    name: str
    """What the source is called in messages: a folder, a file or a data set's name."""
    classes: tuple[str, ...] = ()
    """Class names, by label; empty if the source is unlabelled."""
    labels: npt.NDArray[np.int64] | None = None
    """(N,) numbers into `classes`; None if the source is unlabelled."""
    channels: int = 3
    """What `read` gives: 3 for RGB, 1 for grey (mode L)."""
    size: tuple[int, int] | None = None
    """(H, W) if all images are known to have it."""
    root: Path | None = None
    """The folder that the keys are relative to, for sources of files."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """By reason, such as ".heic files" or "hidden files": how many were there and not taken."""
    notes: Sequence[str] = ()
    """What was decided on the way to the images, such as which columns of a list are not used."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def key(self, index: int) -> str:
        """The name of an image: its path relative to `root` with forward slashes, or such as "shapes/000123".

        On Linux a file name need not be UTF-8; then the key holds surrogates, which `os.fsencode` turns back.
        """

    @abstractmethod
    def read(self, index: int) -> Image.Image | Unreadable:
        """The image, of mode RGB or L as `channels` says, or why it cannot be had. Raises IndexError beyond N."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hex digest that changes when images are added, removed, renamed, resized or relabelled.

        Of files it covers names, sizes and labels, not contents: N calls of `os.stat`.
        """

    def path(self, index: int) -> Path | None:
        """The image's file, if it has one."""
        return None

    def content(self, index: int) -> bytes | None:
        """The bytes of the image's file; None if it has none, or cannot be read. Raises IndexError beyond N."""
        return None

    def array(self) -> npt.NDArray[np.uint8] | None:
        """All images, (N, H, W) grey or (N, H, W, 3) RGB, where they are of one size and in memory; else None."""
        return None

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"<{type(self).__name__} {self.name}: {len(self)} images{classes}>"


class FileSource(Source):
    """Image files, whose keys are relative to one folder.

    Args:
        name: what the source is called.
        root: the folder; None if the keys are relative to the working folder of now.
        keys: N paths with forward slashes, relative or absolute.
        labels: a class name for each, or None.
        left_out, notes: as `Source` has them.
    """

    def __init__(
        self,
        name: str,
        root: Path | None,
        keys: Sequence[str],
        labels: Sequence[str] | None = None,
        *,
        left_out: Mapping[str, int] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.root = name, root
        self._folder = Path.cwd() if root is None else root.absolute()
        self._keys = PackedStrings(keys)
        self.classes, self.labels = number_classes(labels)
        self.left_out, self.notes = dict(left_out or {}), tuple(notes)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def path(self, index: int) -> Path:
        return self._folder / self._keys[index]

    def read(self, index: int) -> Image.Image | Unreadable:
        return read_image(self.path(index))

    def content(self, index: int) -> bytes | None:
        path = self.path(index)
        try:
            return path.read_bytes() if path.is_file() else None  # a named pipe would be waited for
        except OSError:
            return None

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for index, key in enumerate(self._keys):
            try:
                size = os.path.getsize(os.path.join(self._folder, key))
            except OSError:
                size = -1  # missing now; a file that comes back changes the fingerprint, as it should
            label = "" if self.labels is None else self.classes[self.labels[index]]
            digest.update(f"{key}\0{size}\0{label}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


class ArraySource(Source):
    """Images of one size in one array.

    Args:
        name: what the source is called; the keys are "name/000000" and so on.
        images: (N, H, W) grey, or (N, H, W, C) with C = 1 grey, 3 RGB or 4 RGBA; uint8.
        labels: (N,) numbers into `classes`, or None.
        classes: class names; the labels' own numbers unless told.

    Raises:
        DataError: the array is of another shape or type, or the labels do not fit.
    """

    def __init__(
        self,
        name: str,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.integer] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,), (4,)):
            first = images.ndim == 4 and images.shape[1] in (1, 3, 4)
            raise DataError(
                f"{name} is an array of shape {images.shape} and type {images.dtype}; "
                "it must be (N, H, W) or (N, H, W, C) with 1, 3 or 4 channels, of type uint8 (0 to 255)"
                + ("; channels come last: array.transpose(0, 2, 3, 1)" if first else "")
            )
        self.name = name
        self.images = images[..., 0] if images.shape[3:] == (1,) else images
        self.channels = 1 if self.images.ndim == 3 else 3
        self.size = (images.shape[1], images.shape[2])
        if labels is not None:
            self.labels = np.asarray(labels, np.int64)
            self.classes = tuple(classes) or tuple(map(str, range(int(self.labels.max(initial=-1)) + 1)))
            known = (self.labels >= 0) & (self.labels < len(self.classes))
            if self.labels.shape != (len(images),) or not known.all():
                raise DataError(f"{name}: {len(images)} images need as many labels from 0 to {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return _numbered(self, index)

    def read(self, index: int) -> Image.Image:
        image = Image.fromarray(self.images[index])
        return image if self.channels == 1 else to_rgb(image)

    def array(self) -> npt.NDArray[np.uint8] | None:
        return self.images if self.images.shape[3:] in ((), (3,)) else None  # what is transparent is read one by one

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.name, self.images.shape, self.classes)).encode())
        for start in range(0, len(self), 4096):  # `tobytes` copies
            digest.update(self.images[start : start + 4096].tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()


class ItemSource(Source):
    """Images that the caller holds: PIL images, arrays of any size, bytes of files.

    Args:
        name: what the source is called; the keys are "name/000000" and so on.
        items: PIL images, (H, W) or (H, W, C) uint8 arrays, or encoded images as bytes.
    """

    def __init__(self, name: str, items: Sequence[Image.Image | npt.NDArray[np.uint8] | bytes]) -> None:
        self.name, self.items = name, items

    def __len__(self) -> int:
        return len(self.items)

    def key(self, index: int) -> str:
        return _numbered(self, index)

    def read(self, index: int) -> Image.Image | Unreadable:
        item = self.items[index]
        if isinstance(item, (bytes, Image.Image)):
            return read_image(item)
        return to_rgb(Image.fromarray(item))

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for item in self.items:
            data = item if isinstance(item, bytes) else np.asarray(item).tobytes()
            shape = () if isinstance(item, bytes) else np.asarray(item).shape
            digest.update(repr((len(data), shape)).encode() + data)
        return digest.hexdigest()


class SubsetSource(Source):
    """Some images of another source, in a given order; classes and keys stay the same.

    Args:
        source: the other source.
        indices: (n,) which of its images, repetitions allowed.
    """

    def __init__(self, source: Source, indices: npt.NDArray[np.integer] | Sequence[int]) -> None:
        self.source, self.indices = source, np.asarray(indices, np.int64)
        self.name, self.classes, self.root = source.name, source.classes, source.root
        self.channels, self.size = source.channels, source.size
        self.left_out, self.notes = source.left_out, source.notes
        self.labels = None if source.labels is None else source.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))

    def path(self, index: int) -> Path | None:
        return self.source.path(int(self.indices[index]))

    def read(self, index: int) -> Image.Image | Unreadable:
        return self.source.read(int(self.indices[index]))

    def content(self, index: int) -> bytes | None:
        return self.source.content(int(self.indices[index]))

    def array(self) -> npt.NDArray[np.uint8] | None:
        images = self.source.array()
        return None if images is None else images[self.indices]

    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint().encode() + self.indices.tobytes()).hexdigest()


def _numbered(source: Source, index: int) -> str:
    return f"{source.name}/{range(len(source))[index]:06d}"  # IndexError beyond N


def number_classes(labels: Sequence[str] | None) -> tuple[tuple[str, ...], npt.NDArray[np.int64] | None]:
    """Class names sorted by code points, and each label's place among them, (N,); nothing and None for None.

    Names are in Unicode's composed form (NFC), so that they are equal wherever a system stores accents another way.
    """
    if labels is None:
        return (), None
    composed = {label: unicodedata.normalize("NFC", label) for label in set(labels)}
    classes = tuple(sorted(set(composed.values())))
    number = {name: place for place, name in enumerate(classes)}
    place = {label: number[name] for label, name in composed.items()}
    return classes, np.fromiter((place[label] for label in labels), np.int64, len(labels))


class PackedStrings(Sequence[str]):
    """Strings end to end in one buffer.

    A million Python strings in a list are a million objects, whose reference counts make each forked worker copy the
    memory that holds them; and they pickle slowly.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])  # (N + 1,)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # from the end if negative; IndexError beyond it
        return self._text[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")
