"""One process at a time writes to a folder.

`filelock` asks the kernel, which drops a lock when its owner dies, however it dies: a dead owner's folder is free at
once. Nothing is ever written into the lock file; a file beside it records the owner, for the message.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import sys
import time
from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from barlowtwins.core.errors import OutputError, RunLockedError
from barlowtwins.core.files import write_json

__all__ = ["FolderLock"]

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems; filelock itself knows ENOSYS
PATIENCE = 0.5  # seconds: an owner writes its record right after it got the lock


class FolderLock:
    """Hold `folder` (made if missing) inside a `with` block.

    Args:
        folder: what is locked.
        name: of the lock file; several names in one folder are several locks.

    Raises on entry:
        RunLockedError: a live process holds it; the message names its host and process id.
        OutputError: the folder cannot be made, written to or locked, or the lock file is a link to another file.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str = NAME) -> None:
        self.folder = Path(folder)
        self._path = self.folder.resolve() / name
        self._record = self._path.with_name(f"{name}.json")
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> FolderLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_links()
            lock = self._acquire()
        except Timeout:
            raise self._refusal() from None
        except OSError as error:
            raise OutputError(
                f"cannot write to {self.folder}: {error.strerror or error}; choose a folder that you may write to, on "
                "a disk that has locks"
            ) from error
        try:
            record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_json(self._record, record)
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        with contextlib.suppress(OSError):
            self._record.unlink()
            if sys.platform != "win32":  # there filelock removes it, after the release
                self._path.unlink()  # while the lock is held: who opened it before then gets a lock on no file
        self._lock.release()

    def _acquire(self) -> BaseFileLock:
        lock: BaseFileLock = FileLock(self._path)
        try:
            lock.acquire(timeout=0)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lock = SoftFileLock(f"{self._path}.soft")  # no kernel to ask: a file that names its owner has to do
            lock.acquire(timeout=PATIENCE)  # a dead owner's file is removed by one try and replaced by the next
        return lock

    def _refuse_links(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(self._path)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise OutputError(f"{self._path} is a link to another file, or not a file; remove it")

    def _refusal(self) -> RunLockedError:
        owner = self._owner()
        who = f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "a process"
        since = f" (since {owner['since']})" if "since" in owner else ""
        return RunLockedError(
            f"{self.folder} is in use by {who}{since}; wait for it, stop it, or choose another folder"
        )

    def _owner(self) -> dict[str, object]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                record = json.loads(self._record.read_text("utf-8"))
                if isinstance(record, dict):
                    return record
            time.sleep(0.02)
        return {}
