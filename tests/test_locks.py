"""FolderLock between real processes that live, die by kill -9, fork and race."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from barlowtwins.core.errors import OutputError, RunLockedError
from barlowtwins.core.locks import NAME, FolderLock

HOLD = """
import sys, time
from barlowtwins.core.locks import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
# A worker forked by the owner lives on after it, as data loaders' workers do for some seconds.
HOLD_WITH_A_CHILD = """
import os, sys, time
from barlowtwins.core.locks import FolderLock
with FolderLock(sys.argv[1]):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        sys.stdout.close(); os.close(1); time.sleep(60); os._exit(0)
    sys.stdin.read()
"""
RACE = """
import os, sys, time
from barlowtwins.core.locks import FolderLock
from barlowtwins.core.errors import RunLockedError
folder, alone = sys.argv[1], os.path.join(sys.argv[1], "alone")
entered = 0
while entered < 15:
    try:
        with FolderLock(folder):
            os.close(os.open(alone, os.O_CREAT | os.O_EXCL))   # fails if another is inside
            time.sleep(0.001)
            os.unlink(alone)
            entered += 1
    except RunLockedError:
        time.sleep(0.001)
"""


def _start(code: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_process_is_refused_with_host_and_pid_until_the_first_is_done(tmp_path: Path) -> None:
    with _start(HOLD, tmp_path / "run") as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(RunLockedError, match=rf"process {owner.pid} on {socket.gethostname()}"):
            FolderLock(tmp_path / "run").__enter__()
        owner.communicate("")
    with FolderLock(tmp_path / "run"):
        pass
    assert sys.platform == "win32" or list((tmp_path / "run").iterdir()) == []


def test_the_lock_of_a_killed_owner_is_taken_over(tmp_path: Path) -> None:
    with _start(HOLD, tmp_path) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        owner.kill()
        owner.wait()
    assert (tmp_path / NAME).exists()
    with FolderLock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / f"{NAME}.json").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="fork is of POSIX")
def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    with _start(HOLD_WITH_A_CHILD, tmp_path) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        try:
            owner.kill()
            owner.wait()
            os.kill(child, 0)
            with FolderLock(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_processes_that_race_are_never_inside_together(tmp_path: Path) -> None:
    racers = [_start(RACE, tmp_path) for _ in range(4)]
    for racer in racers:
        racer.communicate(timeout=60)
    assert [racer.returncode for racer in racers] == [0] * 4


def test_within_one_process_a_second_holder_is_refused_too_and_the_first_keeps_the_lock(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        with pytest.raises(RunLockedError, match=str(os.getpid())):
            FolderLock(tmp_path / "." / ".." / tmp_path.name).__enter__()
        other = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], input="", capture_output=True, text=True)
        assert "RunLockedError" in other.stderr
    with FolderLock(tmp_path):
        pass


def test_an_owner_that_has_not_yet_written_who_it_is_is_waited_for(tmp_path: Path) -> None:
    with _start(HOLD, tmp_path) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        (tmp_path / f"{NAME}.json").write_text("")
        start = time.monotonic()
        with pytest.raises(RunLockedError, match="in use by a process"):
            FolderLock(tmp_path).__enter__()
        assert time.monotonic() - start >= 0.4
        owner.communicate("")


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/run"):
        FolderLock(tmp_path / "file" / "run").__enter__()


def test_the_lock_is_released_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), FolderLock(tmp_path):
        _ = 1 / 0
    with FolderLock(tmp_path):
        pass


# A file system without locks of the kernel, such as some network drives.
WITHOUT_KERNEL_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_without_locks_of_the_kernel_a_living_owner_is_respected_and_a_dead_one_is_not(tmp_path: Path) -> None:
    with _start(WITHOUT_KERNEL_LOCKS + HOLD, tmp_path) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        second = _start(WITHOUT_KERNEL_LOCKS + HOLD, tmp_path)
        owner_named = f"in use by process {owner.pid} on {socket.gethostname()}"
        assert owner_named in second.communicate("", timeout=60)[1]
        owner.kill()
        owner.wait()
    third = _start(WITHOUT_KERNEL_LOCKS + HOLD, tmp_path)
    assert third.communicate("", timeout=60)[0] == "held\n"


@pytest.mark.skipif(sys.platform == "win32", reason="links need special rights there")
@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("record", [False, True], ids=["the lock", "its record"])
def test_60_a_lock_file_that_is_a_link_leaves_its_target_untouched(
    tmp_path: Path, link: Callable[[Path, Path], None], record: bool
) -> None:
    target, folder = tmp_path / "precious", tmp_path / "run"
    target.write_text("content")
    folder.mkdir()
    link(target, folder / (f"{NAME}.json" if record else NAME))
    if record:
        with FolderLock(folder):
            pass  # written beside it and renamed: the link is replaced, not followed
    else:
        with pytest.raises(OutputError, match=r"run/\.lock is a link to another file"):
            FolderLock(folder).__enter__()
    assert target.read_text() == "content"


@pytest.mark.skipif(sys.platform == "win32", reason="links need special rights there")
def test_60_a_lock_file_that_links_to_nothing_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="remove it"):
        FolderLock(tmp_path).__enter__()
    assert not (tmp_path / "elsewhere").exists()
