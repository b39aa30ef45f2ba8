"""Tar archives as a source of images: each is read once from header to header, then any image by offset and size.

Row order: archives sorted by their names (code points), and in each the order of the archive. So a set of shards has
the same rows however it is named (braces, wildcards), and an archive more whose name sorts last only adds rows.

| in the archive | becomes |
|---|---|
| a regular file with an image suffix | a row, whose key is "archive.tar/name in it" |
| a hard or symbolic link to such a file in the same archive | a row with the bytes of that file |
| `x.cls` or `x.json` beside `x.jpg` (WebDataset) | its label: the text, or "label" or "cls" of the JSON object |
| no such labels, but every image in a folder | labels, as of a folder of class folders |
| hidden names, links to elsewhere, devices, other files | nothing; they are counted as left out |

`a1.5.cls` is the label of `a1.5.jpg`: of the names that an image and a label share up to a dot, the longest counts. Two
labels for one image are refused, and so is an image or label whose name comes twice. Archives that were joined with
`cat` are read one after the other.
"""

# N images in T archives

from __future__ import annotations

import itertools
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import IO, Any

import numpy as np
from PIL import Image

from barlowtwins.core.errors import BarlowTwinsError, DataError
from barlowtwins.core.readers import parse_json
from barlowtwins.data.images import Unreadable, read_image
from barlowtwins.data.listing import left_out_because, top_folders
from barlowtwins.data.remote import absolute, fingerprint_of, matching, named, open_file, read_range
from barlowtwins.data.sources import PackedStrings, Source, number_classes

__all__ = ["TarSource", "is_tar"]

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
THREADS = 8  # archives that are read at once: behind a URL, most of the time is waiting
LABELS = (".cls", ".json")
MOST_LABEL_BYTES = 1 << 20  # of a .cls or .json file, and of a header's extension
EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
MOST_LINKS = 40  # from one to the next, as Linux follows them


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
        self.classes, self.labels = number_classes(_labels(pattern, self._tars, indices, names))
        self.left_out = dict(sum((index.left_out for index in indices), Counter[str]()))
        self.notes = tuple(
            f"{tar} is {index.parts} archives joined to one file; all were read"
            for tar, index in zip(prefixes, indices, strict=True)
            if index.parts > 1
        )

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def read(self, index: int) -> Image.Image | Unreadable:
        data, size = self.content(index), int(self._sizes[index])
        if len(data) < size:
            return Unreadable(self.key(index), f"the archive has only {len(data):,} of its {size:,} bytes")
        return named(read_image(data), self.key(index))

    def content(self, index: int) -> bytes:
        row = range(len(self))[index]
        tar = self._tars[int(np.searchsorted(self._ends, row, side="right"))]
        try:
            return read_range(tar, int(self._offsets[row]), int(self._sizes[row]))
        except OSError as error:  # not one bad image: all of an archive would become NaN
            raise DataError(f"{tar} cannot be read any more ({error.strerror or error}); bring it back") from error

    def fingerprint(self) -> str:
        return fingerprint_of(self, self._sizes)


@dataclass
class _Index:
    """The images of one archive, n of them."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Label and the file that gave it, by that file's name without its suffix."""
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Offset and size of every regular file, of which links may be."""
    links: dict[int, str] = field(default_factory=dict)
    """What a row that is a link leads to, by its number."""
    left_out: Counter[str] = field(default_factory=Counter)
    parts: int = 0
    """Archives that were joined to this file."""


class _Member(tarfile.TarInfo):
    """A header whose extensions are bounded before `tarfile` reads them into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in EXTENSIONS and member.size > MOST_LABEL_BYTES):
            raise DataError(f"a header of the archive claims {member.size:,} bytes: refused; make or copy it again")
        return member

    def _proc_gnusparse_10(self, *_: Any) -> None:
        """`tarfile` would look for the end of a map that has none for ever."""
        raise DataError("the archive holds a sparse file; make it again without --sparse")


def _read_index(tar: str) -> _Index:
    index = _Index()
    try:
        with open_file(tar) as file:
            start: int | None = 0
            while start is not None:
                file.seek(start)
                start = _read_part(file, tar, index)
    except BarlowTwinsError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {tar}: {error.strerror or error}; make it readable") from error
    except Exception as error:  # damaged headers make `tarfile` fail in any way there is
        said = " ".join(str(error).split())[:150] or type(error).__name__
        raise DataError(f"{tar} is not a whole tar archive ({said}); make or copy it again") from error
    _follow_links(index)
    return index


def _read_part(file: IO[bytes], tar: str, index: _Index) -> int | None:
    """Read an archive from here to its end mark; where another one begins after it, or None."""
    index.parts += 1
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as archive:
        place = -1
        while (member := archive.next()) is not None:
            if member.size < 0 or archive.offset <= place:
                raise DataError(f"{tar} has a member of {member.size} bytes: refused; make or copy it again")
            place = archive.offset
            _take(member, tar, file, index)
            archive.members.clear()  # type: ignore[attr-defined]  # they would grow with the archive
        _require_end(file, archive.offset, tar)
    return _next_part(file)


def _next_part(file: IO[bytes]) -> int | None:
    """Where something other than zeros begins, from here on: archives that were joined follow each other so."""
    while block := file.read(1 << 16):
        rest = block.lstrip(b"\0")
        if rest:
            at = file.tell() - len(rest)
            return at - at % tarfile.BLOCKSIZE
    return None


def _take(member: tarfile.TarInfo, tar: str, file: IO[bytes], index: _Index) -> None:
    """Note a member of the archive if it is an image or a label; else count it as left out."""
    windows = PureWindowsPath(member.name)  # splits at both kinds of slashes
    if member.name.startswith(("/", "\\")) or windows.is_absolute() or ".." in windows.parts:
        raise DataError(f"{tar} names {member.name!r}, outside of itself; refused, make it with relative names")
    name = _plain(member.name)
    link = member.islnk() or member.issym()
    if member.isdir():
        return
    if not (member.isreg() or link):
        index.left_out["not files"] += 1
        return
    why = left_out_because(name)
    suffix = os.path.splitext(name)[1].lower()
    is_label = why is not None and suffix in LABELS and not link and not left_out_because(f"{name}.png")
    if (why is None or is_label) and name in index.files:
        raise DataError(f"{tar} holds {name} twice, and which one is meant is not told; make it again with one of them")
    if member.isreg() and member.issparse() and why is None:
        raise DataError(f"{tar} holds {name} as a sparse file; make it again without --sparse")
    index.files[name] = (member.offset_data, member.size)
    if why is None:
        if link:
            target = member.linkname if member.islnk() else posixpath.join(posixpath.dirname(name), member.linkname)
            index.links[len(index.names)] = _plain(posixpath.normpath(target))
        index.names.append(name)
        index.offsets.append(member.offset_data)
        index.sizes.append(member.size)
    elif not (is_label and member.size <= MOST_LABEL_BYTES and _take_label(member, name, tar, file, index)):
        index.left_out[why] += 1


def _take_label(member: tarfile.TarInfo, name: str, tar: str, file: IO[bytes], index: _Index) -> bool:
    """Note the label in a file, if there is one."""
    stem, suffix = os.path.splitext(name)
    file.seek(member.offset_data)  # tarfile seeks before each header
    label = _label(file.read(member.size), suffix.lower(), f"{tar}/{name}")
    if label is None:
        return False
    before, by = index.labels.setdefault(stem, (label, name))
    if before != label:
        raise DataError(f"{tar} has two labels for {stem}: {before!r} in {by} and {label!r} in {name}; keep one")
    return True


def _follow_links(index: _Index) -> None:
    """Give the rows that are links the bytes of what they lead to; those that lead out of the archive are left out."""
    lost = set()
    targets = {index.names[row]: target for row, target in index.links.items()}
    for row, name in index.links.items():
        for _ in range(MOST_LINKS):
            if name not in targets:
                break
            name = targets[name]
        if name in index.files and name not in targets:
            index.offsets[row], index.sizes[row] = index.files[name]
        else:
            lost.add(row)
    if lost:
        index.left_out["links that lead out of the archive"] += len(lost)
        kept = [row for row in range(len(index.names)) if row not in lost]
        index.names = [index.names[row] for row in kept]
        index.offsets = [index.offsets[row] for row in kept]
        index.sizes = [index.sizes[row] for row in kept]
    index.files, index.links = {}, {}


def _plain(name: str) -> str:
    """A member's name without "." and doubled slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _label(data: bytes, suffix: str, name: str) -> str | None:
    try:
        if suffix == ".cls":
            return data.decode("utf-8-sig").strip()
        content = parse_json(data)
    except ValueError as error:
        raise DataError(f"{name} cannot be read as a label: {error}; it must be UTF-8 text, or JSON") from error
    found = {key: content[key] for key in ("label", "cls") if key in content} if type(content) is dict else {}
    values = {str(value) for value in found.values() if isinstance(value, (str, int))}
    if len(values) > 1:
        raise DataError(f"{name} has two labels, {found['label']!r} as 'label' and {found['cls']!r} as 'cls'; keep one")
    return values.pop() if values else None


def _require_end(file: IO[bytes], offset: int, tar: str) -> None:
    """`tarfile` takes a damaged or cut header for the end; an archive ends in a block of zeros."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{tar} is cut or damaged at byte {offset:,}: its end mark is missing; make or copy it again")


def _labels(pattern: str, tars: Sequence[str], indices: Sequence[_Index], names: Sequence[str]) -> list[str] | None:
    """A label for each image, or None."""
    labels = [label for tar, index in zip(tars, indices, strict=True) for label in _labels_of(tar, index)]
    known = [label for label in labels if label is not None]
    given = sum(len(index.labels) for index in indices)
    if not given:
        return top_folders(names)
    if len(known) < len(labels):
        first = names[labels.index(None)]
        raise DataError(
            f"{len(labels) - len(known)} of {len(labels)} images in {pattern} have no label, first {first}, beside "
            f"{given} label files; label all or none: x.cls belongs to x.jpg"
        )
    return known


def _labels_of(tar: str, index: _Index) -> list[str | None]:
    """The label of each image: of the label file whose name shares most with it, up to a dot.

    `a1.5.jpg` takes `a1.5.cls`, and `a1.cls` only where that is missing; `x.jpg` takes `x.meta.json`, too, if it is
    the only one of its kind and belongs to no image more closely.
    """
    taken: set[str] = set()
    found: list[str | None] = []
    for name in index.names:
        stem = next((stem for stem in _shorter(os.path.splitext(name)[0]) if stem in index.labels), None)
        taken.update(() if stem is None else (stem,))
        found.append(None if stem is None else index.labels[stem][0])
    beyond: dict[str, list[str]] = {}
    for stem in index.labels:
        if stem not in taken:
            for shorter in _shorter(stem):
                beyond.setdefault(shorter, []).append(stem)
    for row, name in enumerate(index.names):
        stems = beyond.get(os.path.splitext(name)[0], []) if found[row] is None else []
        if len({index.labels[stem][0] for stem in stems}) > 1:
            first, second = (index.labels[stem][1] for stem in stems[:2])
            raise DataError(f"{tar} has two labels for {name}: those of {first} and {second}; keep one")
        if stems:
            taken.update(stems)
            found[row] = index.labels[stems[0]][0]
    if spare := len(index.labels) - len(taken):
        index.left_out["labels without an image"] += spare
    return found


def _shorter(stem: str) -> Iterator[str]:
    """The stem, and what is left of it without its last, last two, ... parts; dots of folders do not part it."""
    folder, slash, file = stem.rpartition("/")
    parts = file.split(".")
    for end in range(len(parts), 0, -1):
        yield folder + slash + ".".join(parts[:end])


def _shortest(names: Sequence[str]) -> list[str]:
    """Names relative to the deepest folder that holds them all."""
    parts = [name.split("/") for name in names]
    shared = itertools.takewhile(
        lambda column: len(set(column)) == 1, zip(*(part[:-1] for part in parts), strict=False)
    )
    depth = sum(1 for _ in shared)
    return ["/".join(part[depth:]) for part in parts]
