"""One process at a time writes to a folder.

The kernel holds the lock (a POSIX record lock on `.lock` in the folder) and drops it when its owner dies, however it
dies, so a dead owner's folder is free at once and no race decides. A record lock is not inherited by fork, so worker
processes that outlive their killed parent do not hold it. Inside the file stands who holds it, for the message.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from barlowtwins.core.errors import OutputError, RunLockedError

__all__ = ["FolderLock"]

NAME = ".lock"
BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems
RECORD_PATIENCE = 0.5  # seconds: an owner writes its record right after it got the lock

if sys.platform == "win32":
    import msvcrt

    FAR = 1 << 30  # Windows forbids others to read locked bytes, so lock one beyond the record

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FolderLock:
    """Hold `folder` (made if missing) inside a `with` block.

    Args:
        folder: what is locked.
        name: of the lock file; several names in one folder are several locks.

    Raises on entry:
        RunLockedError: a live process holds it; the message names its host and process id.
        OutputError: the folder cannot be made or written to.
    """

    _held: ClassVar[set[Path]] = set()  # record locks do not tell two holders within one process apart
    _guard = threading.Lock()

    def __init__(self, folder: str | os.PathLike[str], name: str = NAME) -> None:
        self.folder = Path(folder)
        self._path = self.folder.resolve() / name
        self._descriptor = -1

    def __enter__(self) -> FolderLock:
        with FolderLock._guard:
            if self._path in FolderLock._held:
                raise self._refusal({"host": socket.gethostname(), "pid": os.getpid()})
            self._acquire()
            FolderLock._held.add(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with FolderLock._guard, contextlib.suppress(OSError):  # on Windows an open file cannot be removed: it stays
            FolderLock._held.discard(self._path)
            if sys.platform != "win32":
                self._path.unlink()  # while the lock is held: who opened it before then finds another file, and retries
            os.close(self._descriptor)

    def _acquire(self) -> None:
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise OutputError(
                    f"cannot write to {self.folder}: {error.strerror or error}; choose a folder that you may write to"
                ) from error
            try:
                self._take(descriptor)
                if _same_file(descriptor, self._path):
                    self._write_record(descriptor)
                    self._descriptor = descriptor
                    return
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the last owner removed the file between our opening and locking it

    def _take(self, descriptor: int) -> None:
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in BUSY:
                raise self._refusal(self._read_record(descriptor)) from None
            if error.errno not in NO_LOCKS:
                raise OutputError(
                    f"cannot lock the folder {self.folder}: {error.strerror or error}; choose one on another disk"
                ) from error
            record = self._read_record(descriptor, patience=0.0)  # no kernel to ask: the record has to do
            if record and not _is_dead(record):
                raise self._refusal(record) from None

    def _write_record(self, descriptor: int) -> None:
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(record).encode() + b"\n")
        except OSError as error:  # the lock holds all the same, but a full disk will not do for what follows
            raise OutputError(
                f"cannot write {self._path}: {error.strerror or error}; free some space, or choose another folder"
            ) from error

    def _read_record(self, descriptor: int, patience: float = RECORD_PATIENCE) -> dict[str, Any]:
        end = time.monotonic() + patience
        while True:
            with contextlib.suppress(OSError, ValueError):
                os.lseek(descriptor, 0, os.SEEK_SET)
                record = json.loads(os.read(descriptor, 4096))
                if isinstance(record, dict):
                    return record
            if time.monotonic() >= end:
                return {}
            time.sleep(0.02)

    def _refusal(self, record: dict[str, Any]) -> RunLockedError:
        owner = f"process {record['pid']} on {record['host']}" if {"pid", "host"} <= record.keys() else "a process"
        since = f" (since {record['since']})" if "since" in record else ""
        return RunLockedError(
            f"{self.folder} is in use by {owner}{since}; wait for it, stop it, or choose another folder"
        )


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _is_dead(record: dict[str, Any]) -> bool:
    """Whether the record's owner ran on this host and is gone; of another host nothing is known."""
    if record.get("host") != socket.gethostname() or not isinstance(record.get("pid"), int):
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # alive, of another user
        return False
    return False
