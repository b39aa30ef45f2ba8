"""What images there are: those in a folder tree, or those that a text file names.

A listing is a sequence of keys: relative paths with forward slashes, the same on every platform.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from barlowtwins.core.errors import DataError
from barlowtwins.data.images import IMAGE_SUFFIXES

__all__ = ["list_folder", "read_list", "top_folders"]

LIST_SUFFIXES = (".txt", ".tsv", ".csv")
HEADER_NAMES = frozenset({"path", "paths", "file", "filename", "file_name", "filepath", "image", "images"})


def list_folder(root: Path) -> list[str]:
    """List the images of a folder and all folders below it.

    Taken are files with a suffix of `IMAGE_SUFFIXES` in upper or lower case; links to files and folders are followed,
    and a link that leads nowhere is taken too, so that it is reported when it is read. Left out are names that begin
    with a dot (hidden files, this package's temporary files) and a link back to a folder that it lies in (a loop).

    Args:
        root: an existing folder.

    Returns:
        Paths relative to `root` with forward slashes, sorted by code points as whole strings: "a-b/x.png" comes
        before "a/x.png", and "Z.png" before "a.png".

    Raises:
        DataError: the folder or one below it cannot be listed, or holds no image; the message says what it holds.
    """
    keys: list[str] = []
    others: Counter[str] = Counter()
    for key in _walk(root):
        suffix = os.path.splitext(key)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            keys.append(key)
        else:
            others[suffix or "none"] += 1
    if not keys:
        raise DataError(f"no images in {root}: {_what_is_there(others)}; give a folder that has some")
    keys.sort()
    return keys


def top_folders(keys: Sequence[str]) -> list[str] | None:
    """The first folder of each key; None if some key lies in no folder."""
    tops = [key.partition("/")[0] for key in keys if "/" in key]
    return tops if len(tops) == len(keys) else None


def _walk(root: Path) -> Iterator[str]:
    """Relative paths of everything but folders below `root`, in no particular order."""
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]  # (folder, identities of those it lies in)
    while pending:
        folder, above = pending.pop()
        absolute = os.path.join(root, folder)
        try:
            status = os.stat(absolute)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            with os.scandir(absolute) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    key = f"{folder}/{entry.name}" if folder else entry.name
                    try:
                        if entry.is_dir():
                            pending.append((key, (*above, identity)))
                            continue
                        if not (entry.is_file() or entry.is_symlink()):
                            continue  # a socket, pipe or device
                    except OSError:
                        pass  # a link that leads to itself
                    yield key
        except OSError as error:
            raise DataError(f"cannot list {absolute}: {error.strerror}; make it readable or move it away") from error


def _what_is_there(suffixes: Counter[str]) -> str:
    if not suffixes:
        return "no files are there"
    common = ", ".join(f"{suffix} ({count})" for suffix, count in suffixes.most_common(3))
    return f"{suffixes.total()} files, most common suffixes {common}; known are {' '.join(sorted(IMAGE_SUFFIXES))}"


def read_list(file: Path) -> tuple[list[str], list[str] | None]:
    """Read a text file that names an image a line, with or without a label.

    A line is a path, or a path, a tab and a label. A comma does in place of the tab if an image suffix stands before
    it; a .csv file is comma-separated, with its usual quotes. Empty lines, lines that begin with # and a heading such
    as "path,label" are skipped. Paths are absolute or relative to the list's own folder; their order and repetitions
    are kept. The text is UTF-8.

    Args:
        file: an existing file.

    Returns:
        Keys (paths with forward slashes as the list has them), and a label for each or None.

    Raises:
        DataError: the list cannot be read, names no image, names files that do not exist, or labels only some lines.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` would split at odd characters in names
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {file}: {error}; it must be UTF-8 text, a path a line") from error
    is_csv = file.suffix.lower() == ".csv"
    entries = [
        (number, *_split(line, is_csv=is_csv))
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if entries and entries[0][1].lower() in HEADER_NAMES and not os.path.exists(file.parent / entries[0][1]):
        del entries[0]
    if not entries:
        raise DataError(
            f"the list {file} names no image: its lines are empty, comments or headings; give a path a line"
        )

    missing = [(number, path) for number, path, _ in entries if not os.path.exists(file.parent / path)]
    if missing:
        first = "; ".join(f"line {number}: {path}" for number, path in missing[:3])
        raise DataError(
            f"{len(missing)} of {len(entries)} files in {file} do not exist ({first}); relative paths are "
            f"taken from {file.parent}"
        )
    unlabelled = [number for number, _, label in entries if not label]
    if 0 < len(unlabelled) < len(entries):
        raise DataError(
            f"{len(unlabelled)} of {len(entries)} lines in {file} have no label, first line {unlabelled[0]}; "
            "label all or none"
        )
    keys = [PurePath(path).as_posix() for _, path, _ in entries]
    return keys, None if unlabelled else [label for _, _, label in entries]


def _split(line: str, *, is_csv: bool) -> tuple[str, str]:
    """Path and label (empty if there is none) of one line."""
    if is_csv:
        fields = next(csv.reader([line]))
        return fields[0].strip(), fields[1].strip() if len(fields) > 1 else ""
    path, tab, label = line.partition("\t")
    if not tab:
        before, _, after = line.rpartition(",")
        if _has_image_suffix(before) and not _has_image_suffix(after):
            path, label = before, after
    return path.strip(), label.strip()


def _has_image_suffix(path: str) -> bool:
    return os.path.splitext(path.strip())[1].lower() in IMAGE_SUFFIXES
