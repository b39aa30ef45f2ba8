"""Crash points: a process that is killed at its n-th step on the way to the disk, as by `kill -9`.

`arm` runs in the process that is to die (see `ProcessPool.start(before=...)`). It counts what that process
does to files
below a folder, without a word of the package's own code being changed:

| point | is |
|---|---|
| open | before a file is opened for writing, and so made |
| write | before bytes go to a file, and in the middle of them: the first half is on the disk |
| fsync, fsynced | before and after a file is flushed to the disk |
| rename, remove, mkdir, rmdir, truncate | before the change; "after" it is before the next point |
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

__all__ = ["arm", "passed", "worth_dying_at"]

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def arm(folder: str, at: int, notes: str) -> None:
    """Kill this process at its point number `at`, counted from 0.

    Args:
        folder: only files below it count.
        at: which point; -1 for none.
        notes: the file in which each point that was passed is noted, a line each.
    """
    real_open, real_fsync, own = builtins.open, os.fsync, os.getpid()
    note = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    count = 0

    def point(name: str) -> None:
        nonlocal count
        if os.getpid() != own:  # a worker
            return
        if count == at:
            os.kill(own, signal.SIGKILL)
        count += 1
        os.write(note, f"{name}\n".encode())

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and isinstance(arguments[0], (str, bytes, os.PathLike)):
            if _below(folder, arguments[0]) or (event == "os.rename" and _below(folder, arguments[1])):
                point(event.removeprefix("os."))
        elif event == "open" and _writes(arguments[1]) and _below(folder, arguments[0]):
            point("open")

    def fsync(file: Any) -> None:
        point("fsync")
        real_fsync(file)
        point("fsynced")

    def open_and_watch(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real_open(path, mode, *args, **kwargs)
        return _File(file, point) if _writes(mode) and _below(folder, path) else file

    sys.addaudithook(listen)
    os.fsync = fsync
    builtins.open = io.open = open_and_watch


def _writes(mode: Any) -> bool:
    return isinstance(mode, str) and bool(set(mode) & set("wax+"))


def _below(folder: str, path: Any) -> bool:
    if isinstance(path, int):
        return False
    path = os.fsdecode(path)
    return path.startswith(folder) or not os.path.isabs(path)  # relative: below a folder that is being removed


class _File:
    """A file whose writes are points."""

    def __init__(self, file: Any, point: Any) -> None:
        self._file, self._point = file, point

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        self._point("write")
        half = len(data) // 2
        if not half:
            return self._file.write(data)
        self._file.write(data[:half])
        self._file.flush()
        self._point("write")
        self._file.write(data[half:])
        return len(data)


def passed(notes: Path) -> list[str]:
    """The names of the points that a process passed."""
    return notes.read_text().splitlines()


def worth_dying_at(points: list[str], *, writes: int) -> list[int]:
    """All points but the many alike within a file: of writes in a row the first two, the last, every `writes`-th."""
    kept = []
    for at, name in enumerate(points):
        first = at < 2 or points[at - 2] != "write" or points[at - 1] != "write"
        last = at + 1 == len(points) or points[at + 1] != "write"
        if name != "write" or first or last or at % writes == 0:
            kept.append(at)
    return kept
