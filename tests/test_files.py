"""atomic_write under real kills at every line, real full disks and real races; the other helpers beside it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from barlowtwins.core import files
from barlowtwins.core.errors import OutputError

posix = pytest.mark.skipif(sys.platform == "win32", reason="fork, SIGKILL and file-size limits are of POSIX")

# Fork again and again; the n-th child kills itself just before the n-th line of files.py (or of the block) runs.
KILL_EVERYWHERE = """
import itertools, os, signal, sys
from pathlib import Path
from barlowtwins.core import files

target = Path(sys.argv[1])

def write():
    with files.atomic_write(target) as file:
        file.write(b"new" * 1000)
        file.write(b"end")

for n in itertools.count(1):
    target.write_bytes(b"old")
    child = os.fork()
    if child == 0:
        left = n
        def trace(frame, event, argument):
            global left
            if frame.f_code.co_filename not in (files.__file__, "<string>"):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)
        write()
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    found = {b"old": "old", b"new" * 1000 + b"end": "new"}.get(target.read_bytes(), "broken")
    print("killed" if killed else "done", found, flush=True)
    if not killed:
        break
"""

# As a disk that fills up: no file may grow beyond 10,000 bytes.
FULL_DISK = """
import resource, signal, sys
from barlowtwins.core import files
from barlowtwins.core.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    files.write_bytes(sys.argv[1], b"x" * int(sys.argv[2]))
except OutputError as error:
    print(error)
"""

# Write the same name over and over, each time one letter 100,000 times.
WRITER = """
import sys
from barlowtwins.core import files
for _ in range(30):
    files.write_bytes(sys.argv[1], sys.argv[2].encode() * 100_000)
"""


def _run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@posix
def test_killed_anywhere_the_old_file_or_the_new_one_is_there(tmp_path: Path) -> None:
    lines = _run(KILL_EVERYWHERE, tmp_path / "file").splitlines()
    states = [line.split() for line in lines]
    assert len(states) > 15  # boundaries that were tried
    assert [state[1] for state in states] == sorted((state[1] for state in states), key=["old", "new"].index)
    assert states[-1] == ["done", "new"]
    assert ["killed", "new"] in states  # after the rename, before the folder was flushed
    leftovers = [path for path in tmp_path.iterdir() if path.name != "file"]
    assert leftovers
    assert all(path.name.startswith(".file.") and path.suffix == ".partial" for path in leftovers)
    assert files.sweep_partial(tmp_path) == []  # they are young, and may belong to a living process
    assert sorted(files.sweep_partial(tmp_path, older_than=-1)) == sorted(leftovers)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@posix
@pytest.mark.parametrize("size", [10_001, 5_000_000])  # fails at the last flush, and in the middle
def test_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    said = _run(FULL_DISK, target, size)
    assert "no space left" in said
    assert str(target) in said
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_never_sees_a_part_while_several_write(tmp_path: Path) -> None:
    target = tmp_path / "file"
    files.write_bytes(target, b"z" * 100_000)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(target), letter]) for letter in "abcd"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = target.read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1
        seen.add(content[0])
    assert [writer.returncode for writer in writers] == [0] * 4
    assert len(seen) > 1
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_inside_the_block_passes_through_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic_write(target) as file:
        file.write(b"new")
        _ = 1 / 0
    # a file missing inside the block is not a failure to write the target
    with pytest.raises(FileNotFoundError, match="missing"), files.atomic_write(target) as file:
        file.write((tmp_path / "missing").read_bytes())
    with pytest.raises(OSError, match="no errno"), files.atomic_write(target):
        raise OSError("no errno")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_in_its_place_or_a_file_in_its_folders_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="folder is a folder"):
        files.write_bytes(tmp_path / "folder", b"")
    with pytest.raises(OutputError, match=r"cannot write .*below"):
        files.write_bytes(tmp_path / "file" / "further" / "below", b"")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="writable"):
            files.write_bytes(tmp_path / "file", b"")
    finally:
        tmp_path.chmod(0o700)


def test_missing_folders_are_made_and_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "text"
    files.write_text(target, "één\nzwei\n")
    assert target.read_bytes() == "één\nzwei\n".encode()


def test_json_round_trip_and_nan_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "value.json"
    value = {"a": [1, 2.5, None], "path": Path("x")}
    files.write_json(target, value, default=str)
    assert json.loads(target.read_text()) == {"a": [1, 2.5, None], "path": "x"}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(target, {"a": float("nan")})
    assert json.loads(target.read_text())["a"] == [1, 2.5, None]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_across_the_piece_size(tmp_path: Path, size: int) -> None:
    content = bytes(i * 7 % 256 for i in range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert files.sha256_of(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


def test_sweep_removes_old_partial_files_only(tmp_path: Path) -> None:
    old, young, other = tmp_path / ".a.1.ff.partial", tmp_path / ".b.1.ff.partial", tmp_path / "c.partial"
    for path in (old, young, other):
        path.write_text("")
    two_days_ago = time.time() - 2 * files.DAY
    os.utime(old, (two_days_ago, two_days_ago))
    os.utime(other, (two_days_ago, two_days_ago))  # not a name of ours
    assert files.sweep_partial(tmp_path) == [old]
    assert files.sweep_partial(tmp_path / "missing") == []
    assert sorted(tmp_path.iterdir()) == [young, other]
