"""Files on this machine or behind a URL of any file system that fsspec knows (s3://, gs://, hf://, memory://, ...).

A file that is not there is one bad file. A network that is down is not: it is tried again for a while, and then ends
the work with an error, since rows that became NaN for it would stay NaN.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image

from barlowtwins.core.errors import DataError, MissingExtraError
from barlowtwins.data.images import Unreadable, read_image
from barlowtwins.data.listing import left_out_because, top_folders
from barlowtwins.data.sources import PackedStrings, Source, number_classes

__all__ = ["UrlSource", "expand", "is_url", "matching", "open_file", "read_bytes", "read_range"]

T = TypeVar("T")

PAUSES = (0.5, 2.0, 8.0)  # seconds between tries of a file system that fails
MOST = 1_000_000  # names from the braces of a pattern
SCHEMES = frozenset(
    (
        *("s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "adl", "wasb", "oci", "oss", "r2", "b2", "swift"),
        *("http", "https", "webdav", "webhdfs", "hdfs", "ftp", "sftp", "ssh", "smb", "memory", "file", "local"),
    )
)
"""File systems of fsspec that hold files and do nothing else: those that read files which refer to others, unpack
archives, run commands or put one file system on another are left out."""

LONGEST_COUNT = 15  # digits of a number in braces

_COUNT = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


def is_url(name: str) -> bool:
    """Whether `name` is a URL, such as s3://bucket/folder, rather than a path."""
    return re.match(r"[A-Za-z][\w+.-]*(::[\w+.-]+)*://", name) is not None


def expand(pattern: str) -> list[str]:
    """Every name that braces stand for: `{000..009}` counts with leading zeros, `{a,b}` lists; as shells expand them.

    Raises:
        DataError: they stand for more than a million names.
    """
    ends = [(found[1], found[2]) for found in _COUNT.finditer(pattern)]
    if max((len(end) for pair in ends for end in pair), default=0) > LONGEST_COUNT:
        raise DataError(f"the braces in {pattern[:100]} count too far; {MOST:,} names are the most")
    counted = math.prod(abs(int(last) - int(first)) + 1 for first, last in ends)
    names = list(itertools.islice(_expand(pattern), MOST + 1)) if counted <= MOST else []
    if not 0 < len(names) <= MOST:
        raise DataError(f"{pattern[:100]} stands for {max(counted, len(names)):,} names or more; {MOST:,} are the most")
    return names


def _expand(pattern: str) -> Iterator[str]:
    if found := _COUNT.search(pattern):
        first, last = int(found[1]), int(found[2])
        width = max(len(found[1]), len(found[2])) if "0" in (found[1][0], found[2][0]) else 0
        step = 1 if last >= first else -1
        inner: Iterable[str] = (f"{number:0{width}}" for number in range(first, last + step, step))
    elif found := _CHOICE.search(pattern):
        inner = found[1].split(",")
    else:
        yield pattern
        return
    for text in inner:
        yield from _expand(pattern[: found.start()] + text + pattern[found.end() :])


def matching(pattern: str) -> list[str]:
    """The files of a pattern with braces and wildcards (`*`, `?`, `[...]`), sorted by code points, each once.

    Raises:
        DataError: a file that is named without a wildcard does not exist, or a wildcard matches nothing.
    """
    if not is_url(pattern) and os.path.exists(pattern):  # a name may hold braces
        return [pattern]
    names: set[str] = set()
    missing = []
    for name in expand(pattern):
        found = _matches(name)
        names.update(found)
        if not found:
            missing.append(name)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"there is no {', '.join(missing[:3])}{more}; {len(names)} files of {pattern} are there")
    return sorted(names)


def _matches(name: str) -> list[str]:
    wild = glob.has_magic(name)
    if not is_url(name):
        return glob.glob(name, recursive=True) if wild else [name] * os.path.isfile(name)
    if wild:
        scheme = name.partition("://")[0]
        return _patiently(name, lambda fs, path: [_with_scheme(scheme, found) for found in fs.glob(path)])
    return [name] * _patiently(name, lambda fs, path: bool(fs.isfile(path)))


def open_file(name: str) -> IO[bytes]:
    """Open a file or URL for reading and seeking.

    Raises:
        FileNotFoundError: there is none. Other errors of this machine's files are OSError, those of URLs DataError.
    """
    if is_url(name):
        return _patiently(name, lambda fs, path: fs.open(path, "rb"))
    return open(name, "rb")


def read_range(name: str, offset: int, size: int) -> bytes:
    """Bytes offset..offset+size of a file or URL, fewer if it ends before. Raises as `open_file` does."""
    if is_url(name):
        return bytes(_patiently(name, lambda fs, path: fs.cat_file(path, start=offset, end=offset + size)))
    with open(name, "rb") as file:
        file.seek(offset)
        return file.read(size)


def read_bytes(url: str) -> bytes:
    """All bytes behind a URL. Raises as `open_file` does."""
    return bytes(_patiently(url, lambda fs, path: fs.cat_file(path)))


def _with_scheme(scheme: str, path: str) -> str:
    return path if is_url(path) else f"{scheme}://{path}"


def _patiently(url: str, action: Callable[[Any, str], T]) -> T:
    """`action(file system, path in it)`, tried again where the file system fails for no fault of the file's.

    The file system is looked up at each call: fsspec keeps one a process, and one that a worker process inherited by
    fork may not be used.
    """
    scheme = url.partition("://")[0]
    if scheme.lower() not in SCHEMES:
        what = "puts one file system on another" if "::" in scheme else f"has the scheme {scheme}"
        raise DataError(f"{url} {what}, which is not read; only {', '.join(sorted(SCHEMES))} are understood")
    try:
        import fsspec
    except ModuleNotFoundError:
        raise MissingExtraError("fsspec", "shards") from None
    for pause in (*PAUSES, None):
        try:
            return action(*fsspec.core.url_to_fs(url))
        except FileNotFoundError:
            raise
        except ImportError as error:  # fsspec knows the scheme, but needs a package for it
            module = getattr(error.__cause__, "name", None)
            bring = f"; pip install {module}" if module else ""
            raise DataError(f"{url} cannot be opened: {' '.join(str(error).split())}{bring}") from None
        except Exception as error:  # each file system has errors of its own
            hopeless = isinstance(error, (PermissionError, IsADirectoryError, ValueError))
            if pause is None or hopeless:
                why = " ".join((str(error) or type(error).__name__).split())
                raise DataError(f"{url} cannot be read: {why}; the same command goes on when it can") from error
            time.sleep(pause)
    raise AssertionError


class UrlSource(Source):
    """The images in a folder behind a URL and in all folders below, sorted and labelled as those of a folder are.

    Args:
        url: such as s3://bucket/images.

    Raises:
        DataError: there is no such folder, or no image in it, or it cannot be listed.
    """

    def __init__(self, url: str) -> None:
        self.name = url
        self._url = url.rstrip("/")
        left_out: Counter[str] = Counter()
        found = sorted(_list_images(self._url, left_out))
        if not found:
            there = f" ({', '.join(f'{count} {why}' for why, count in left_out.items())})" if left_out else ""
            raise DataError(
                f"no images in {url}{there}: give a folder that holds some, or tar shards such as {url}/*.tar"
            )
        self.left_out = dict(left_out)
        keys = [key for key, _ in found]
        self._keys = PackedStrings(keys)
        self._sizes = np.array([size for _, size in found], np.int64)  # (N,)
        self.classes, self.labels = number_classes(top_folders(keys))

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def read(self, index: int) -> Image.Image | Unreadable:
        url = f"{self._url}/{self._keys[index]}"
        try:
            return named(read_image(read_bytes(url)), url)
        except FileNotFoundError:
            return Unreadable(url, "No such file or directory")

    def content(self, index: int) -> bytes | None:
        try:
            return read_bytes(f"{self._url}/{self._keys[index]}")
        except FileNotFoundError:
            return None

    def fingerprint(self) -> str:
        return fingerprint_of(self, self._sizes)


def _list_images(url: str, left_out: Counter[str]) -> Iterator[tuple[str, int]]:
    """Key and size of each image below `url`; what is left out is counted."""
    found: dict[str, dict[str, Any]]
    root, found = _patiently(url, lambda fs, path: (fs._strip_protocol(path), fs.find(path, detail=True)))
    for path, about in found.items():
        key = path.removeprefix(root).lstrip("/")
        if why := left_out_because(key):
            left_out[why] += 1
        else:
            yield key, int(about.get("size") or 0)


# What sources that read no plain files share ------------------------------------------------------------------------


def named(image: Image.Image | Unreadable, name: str) -> Image.Image | Unreadable:
    """What `read_image` made of bytes, with the name that they have."""
    return replace(image, path=name) if isinstance(image, Unreadable) else image


def fingerprint_of(source: Source, sizes: Sequence[int] | np.ndarray) -> str:
    """The digest of keys, sizes in bytes (N,) and labels."""
    digest = hashlib.sha256()
    for index, size in enumerate(sizes):
        label = "" if source.labels is None else source.classes[source.labels[index]]
        digest.update(f"{source.key(index)}\0{size}\0{label}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def absolute(name: str) -> str:
    """A path as it is called from any folder, with forward slashes; a URL as it is."""
    return name if is_url(name) else Path(name).absolute().as_posix()
