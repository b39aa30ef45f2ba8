"""Every file reaches its name here: a temporary beside it, flushed to the disk, then renamed.

A reader therefore sees the old file or the new one, never a part, whatever is killed and whenever.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from barlowtwins.core.errors import OutputError

__all__ = ["atomic_write", "sha256_of", "sweep_partial", "write_bytes", "write_json", "write_text"]

PARTIAL_SUFFIX = ".partial"  # temporary files end in it: listings skip them, `sweep_partial` removes old ones
DAY = 86_400.0


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


def _fsync_folder(folder: Path) -> None:
    """Make the rename itself durable; a no-op where folders cannot be opened (Windows)."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb", *, encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a temporary beside `path`; on success flush it to the disk and rename it, on any failure remove it.

    Args:
        path: the final name; its folder is made if missing.
        mode: "wb" or "w".
        encoding: for text; UTF-8 unless told.

    Raises:
        OutputError: the file cannot be written (disk full, read-only or missing folder, a folder in its place).
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder where a file is to be written; move it away or choose another name")
    partial = _partial_name(path)
    if "b" not in mode:
        encoding = encoding or "utf-8"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, mode, encoding=encoding, newline=None if "b" in mode else "\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _fsync_folder(path.parent)
    except OSError as error:
        ours = {None, str(partial), str(path), *map(str, path.parents)}
        if error.errno is None or error.filename not in ours:
            raise  # raised by what ran inside the `with`, about something else
        raise _explain(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _explain(error: OSError, path: Path) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"no space left to write {path} ({error.strerror}); free some or choose another folder")
    return OutputError(f"cannot write {path}: {error.strerror or error}; check that the folder exists and is writable")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8 with `\\n` line ends."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], value: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """Write `value` to `path` atomically as indented JSON; NaN is refused, since other readers do not know it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=default) + "\n")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file as 64 hex digits, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sweep_partial(folder: str | os.PathLike[str], *, older_than: float = DAY) -> list[Path]:
    """Remove the temporary files in `folder` that killed processes left more than `older_than` seconds ago."""
    removed = []
    for partial in Path(folder).glob(f".*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > older_than:
                partial.unlink()
                removed.append(partial)
    return removed
