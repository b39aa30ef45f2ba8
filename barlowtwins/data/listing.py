"""What images a folder tree holds, and what in it is left out and why.

A listing is a sequence of keys: relative paths with forward slashes, the same on every platform.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from barlowtwins.core.errors import DataError
from barlowtwins.data.images import IMAGE_SUFFIXES, suffix_hint

__all__ = ["is_system_folder", "left_out_because", "list_folder", "top_folders"]

SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@__thumb", "@recycle", "@tmp", "#recycle", "#snapshot", "@recently-snapshot"),  # of NAS makers
        *("$recycle.bin", "recycler", "system volume information", "lost+found", "lost.dir", "__macosx"),
    }
)
"""Names, in lower case, of folders that a system makes for itself: thumbnails, trash, snapshots, copies of metadata."""

HIDDEN_FILES, HIDDEN_FOLDERS, LOOPS, NOT_FILES = (
    "hidden files",
    "hidden folders",
    "links to a folder above",
    "not files",
)


def list_folder(root: Path, left_out: Counter[str] | None = None) -> list[str]:
    """List the images of a folder and all folders below it.

    Taken are files with a suffix of `IMAGE_SUFFIXES` in upper or lower case; links to files and folders are followed,
    and a link that leads nowhere is taken too, so that it is reported when it is read. Left out and counted are files
    of other suffixes, names that begin with a dot (hidden files, this package's temporary files), folders that a
    system makes for itself (`SYSTEM_FOLDERS`), and a link back to a folder that it lies in (a loop).

    Args:
        root: an existing folder.
        left_out: counts, by reason, what is left out.

    Returns:
        Paths relative to `root` with forward slashes, sorted by code points as whole strings: "a-b/x.png" comes
        before "a/x.png", and "Z.png" before "a.png".

    Raises:
        DataError: the folder or one below it cannot be listed, or holds no image; the message says what it holds.
    """
    left_out = Counter() if left_out is None else left_out
    suffixes: Counter[str] = Counter()
    keys: list[str] = []
    for key in _walk(root, left_out):
        suffix = os.path.splitext(key)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            keys.append(key)
        else:
            suffixes[suffix or "none"] += 1
    if not keys:
        raise DataError(f"no images in {root}: {_what_is_there(suffixes, left_out)}; give a folder that has some")
    for suffix, count in suffixes.items():
        left_out[f"{suffix} files" if suffix != "none" else "files without a suffix"] += count
    keys.sort()
    return keys


def top_folders(keys: Sequence[str]) -> list[str] | None:
    """The first folder of each key, in Unicode's composed form (NFC); None if some key lies in no folder.

    Raises:
        DataError: two folders have names that differ only in how accents are stored.
    """
    tops = [key.partition("/")[0] for key in keys if "/" in key]
    if len(tops) != len(keys):
        return None
    composed: dict[str, str] = {}
    for top in sorted(set(tops)):
        other = composed.setdefault(unicodedata.normalize("NFC", top), top)
        if other != top:
            raise DataError(
                f"two class folders are both called {top}, with its accents stored in two ways ({other!a} and "
                f"{top!a}); one class or two? Put the images into one folder, or rename one"
            )
    names = {top: name for name, top in composed.items()}
    return [names[top] for top in tops]


def is_system_folder(name: str) -> bool:
    """Whether a system makes folders of this name for itself."""
    return name.lower() in SYSTEM_FOLDERS


def left_out_because(key: str) -> str | None:
    """Why a file is left out, by its key alone, as `list_folder` would say it; None for an image that is taken."""
    *folders, name = key.split("/")
    if any(folder.startswith(".") for folder in folders):
        return "files in hidden folders"
    if name.startswith("."):
        return HIDDEN_FILES
    for folder in folders:
        if is_system_folder(folder):
            return f"files in {folder}"
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    return f"{suffix} files" if suffix else "files without a suffix"


def _walk(root: Path, left_out: Counter[str]) -> Iterator[str]:
    """Relative paths of everything but folders below `root`, in no particular order."""
    # (folder, identities of those it lies in, the system's folder that it is or lies in)
    pending: list[tuple[str, tuple[tuple[int, int], ...], str]] = [("", (), "")]
    while pending:
        folder, above, system = pending.pop()
        absolute = os.path.join(root, folder)
        try:
            status = os.stat(absolute)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                left_out[LOOPS] += 1
                continue
            with os.scandir(absolute) as entries:
                for entry in entries:
                    key = f"{folder}/{entry.name}" if folder else entry.name
                    if _is_folder(entry):
                        if entry.name.startswith("."):
                            left_out[HIDDEN_FOLDERS] += 1
                        else:
                            inside = system or (entry.name if is_system_folder(entry.name) else "")
                            pending.append((key, (*above, identity), inside))
                    elif reason := _skipped(entry, system):
                        left_out[reason] += 1
                    else:
                        yield key
        except OSError as error:
            if system:  # nothing of it would be taken
                left_out[f"folders in {system} that cannot be listed"] += 1
                continue
            raise DataError(f"cannot list {absolute}: {error.strerror}; make it readable or move it away") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _skipped(entry: os.DirEntry[str], system: str) -> str:
    """Why a file is not even considered; empty if it is."""
    if system:
        return f"files in {system}"
    if entry.name.startswith("."):
        return HIDDEN_FILES
    try:
        return "" if entry.is_file() or entry.is_symlink() else NOT_FILES  # a socket, pipe or device
    except OSError:  # a link that leads to itself, reported when it is read
        return ""


def _what_is_there(suffixes: Counter[str], left_out: Counter[str]) -> str:
    more = f" (and left out: {', '.join(f'{count} {why}' for why, count in left_out.items())})" if left_out else ""
    if not suffixes:
        return f"no files are there{more}"
    common = ", ".join(f"{suffix} ({count})" for suffix, count in suffixes.most_common(3))
    known = f"known are {' '.join(sorted(IMAGE_SUFFIXES))}"
    hints = "".join(f"; {hint}" for hint in {suffix_hint(suffix) for suffix in suffixes} if hint)
    return f"{suffixes.total()} files, most common suffixes {common}{more}; {known}{hints}"
