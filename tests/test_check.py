"""`barlowtwins check`: every image read once, in any number of processes; what cannot be read is listed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from PIL import Image

from barlowtwins.cli import main
from barlowtwins.config import CheckConfig
from barlowtwins.core.errors import DataError
from barlowtwins.core.progress import Progress
from barlowtwins.data.check import check

N = 150  # more than a worker takes at a time


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class a with 100 images, class b with 50; of b two are bad. Widths 3..12, heights 5..9."""
    for number in range(N):
        path = tmp_path / ("a" if number < 100 else "b") / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (3 + number % 10, 5 + number % 5)).save(path)
    (tmp_path / "b" / "110.png").write_bytes(b"")
    cut = tmp_path / "b" / "149.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_finds_the_same(images: Path, workers: int) -> None:
    result = check(CheckConfig(str(images), workers=workers))
    assert (result.n, result.readable) == (N, N - 2)
    assert [Path(bad.path).name for bad in result.bad] == ["110.png", "149.png"]
    assert [bad.why for bad in result.bad] == ["the file is empty", "the PNG file is cut before its end"]
    assert result.class_counts == {"a": 100, "b": 50}
    assert (result.width, result.height, result.channels) == ((3, 12), (5, 9), 3)
    assert result.seconds > 0


def test_it_says_how_far_it_is_and_how_many_are_bad(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Progress.__init__, "__kwdefaults__", {**Progress.__init__.__kwdefaults__, "interval": 0.0})
    assert main(["check", str(images), "--workers", "0", "--json"]) == 0

    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("check: ")]
    assert [line.partition(" img")[0] for line in lines[:3]] == ["check: 64/150", "check: 128/150", "check: 150/150"]
    assert [line.rpartition(", ")[2] for line in lines[:3]] == ["bad 0", "bad 1", "bad 2"]
    assert " left" in lines[0] and "img/s" in lines[0]
    assert captured.out.count("\n") == 1  # the result alone


def test_an_unlabelled_folder_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_text("no")
    result = check(CheckConfig(str(tmp_path)))
    assert (result.n, result.readable, result.class_counts) == (1, 0, {})
    assert (result.width, result.height) == (None, None)


def test_a_named_data_set() -> None:
    result = check(CheckConfig("shapes:70", workers=0))
    assert (result.readable, result.width, result.height) == (70, (32, 32), (32, 32))
    assert set(result.class_counts.values()) == {7}


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in"):
        check(CheckConfig(str(tmp_path)))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_worker_that_is_killed_ends_in_one_clear_line(tmp_path: Path) -> None:
    Image.effect_noise((1500, 1500), 50).save(tmp_path / "large.png")
    (tmp_path / "list.txt").write_text("large.png\n" * 2000)  # minutes of work
    program = """
        from barlowtwins.config import CheckConfig
        from barlowtwins.data.check import check
        from barlowtwins.core.errors import DataError
        try:
            check(CheckConfig("list.txt", workers=2))
        except DataError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        try:
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
            deadline = time.monotonic() + 120
            while len(workers := children.read_text().split()) < 2:
                assert running.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(int(workers[-1]), signal.SIGKILL)
            printed, _ = running.communicate(timeout=120)
        finally:
            running.kill()
    assert "a process that reads images died" in printed
    assert printed.count("\n") == 1
    assert running.returncode == 0
