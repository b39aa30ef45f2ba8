"""The bar on a terminal, the line a minute elsewhere, and silence when told: each in a real process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from barlowtwins.core.progress import Progress, say

JOB = """
import time
from barlowtwins.core.progress import Progress, say
with Progress(40, desc="embed", interval={interval}, enabled={enabled}) as progress:
    for step in range(4):
        time.sleep(0.05)
        progress.update(10, loss=123.456)
        say("a word in between")
print("result")
"""


def _run(interval: float, enabled: bool | None = None) -> subprocess.CompletedProcess[str]:
    job = JOB.format(interval=interval, enabled=enabled)
    return subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, check=True, timeout=60)


def test_without_a_terminal_a_line_each_interval_on_stderr_only() -> None:
    done = _run(interval=0.06)
    lines = [line for line in done.stderr.splitlines() if line.startswith("embed:")]
    assert 2 <= len(lines) <= 5  # under load every sleep may take an interval
    assert re.fullmatch(r"embed: [123]0/40 img \((25|50|75) %\), [\d,]+ img/s, 0:0\d left, loss 123.5", lines[0])
    assert lines[-1].startswith("embed: 40/40 img (100 %)") and "taken" in lines[-1]
    assert done.stdout == "result\n"


def test_without_a_terminal_a_job_shorter_than_the_interval_prints_no_line() -> None:
    assert _run(interval=60).stderr.split("\n") == ["a word in between"] * 4 + [""]


def test_disabled_is_silent() -> None:
    assert "embed" not in _run(interval=0.0, enabled=False).stderr


@pytest.mark.parametrize("first", ["", "import tqdm;"])
def test_a_job_outlives_who_reads_its_progress(first: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    job = first + JOB.format(interval=0.0, enabled=None)
    done = subprocess.run([sys.executable, "-c", job], stderr=writer, stdout=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stdout == "result\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")
def test_on_a_terminal_a_bar_with_rate_time_left_and_fields() -> None:
    master, slave = os.openpty()
    job = JOB.format(interval=60, enabled=None)
    with subprocess.Popen([sys.executable, "-c", job], stderr=slave, stdout=subprocess.PIPE, text=True) as process:
        os.close(slave)
        shown = b""
        while piece := _read(master):
            shown += piece
        assert process.stdout is not None
        assert process.stdout.read() == "result\n"
    os.close(master)
    text = shown.decode()
    assert re.search(r"embed: 100%.*40/40 \[.*img/s, loss=123\]", text)
    assert text.count("a word in between") == 4


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux says EIO when the other side has closed
        return b""


@pytest.mark.parametrize(
    ("progress", "done", "seconds", "expected"),
    [
        (Progress(600, desc="embed", enabled=False), 12, 60, "embed: 12/600 img (2 %), 0.2 img/s, 49:00 left"),
        (Progress(6000, desc="x", enabled=False), 1200, 60, "x: 1,200/6,000 img (20 %), 20 img/s, 4:00 left"),
        (Progress(None, desc="read", enabled=False), 30, 60, "read: 30 img, 0.5 img/s, 1:00 taken"),
        (Progress(100, desc="x", enabled=False), 0, 3, "x: 0/100 img (0 %)"),
        (Progress(0, desc="x", enabled=False), 0, 3, "x: 0/0 img (0 %)"),
        (
            Progress(94_000_000, desc="get", unit="B", enabled=False),
            47_000_000,
            10_000,
            "get: 47.0 MB/94.0 MB (50 %), 4.7 kB/s, 2:46:40 left",
        ),
    ],
)
def test_line(progress: Progress, done: int, seconds: float, expected: str) -> None:
    progress.update(done)
    assert progress.line(seconds) == expected


def test_what_an_earlier_run_did_counts_as_done_but_not_for_the_rate() -> None:
    progress = Progress(100, desc="embed", initial=80, enabled=False)
    progress.update(10)
    assert progress.line(5) == "embed: 90/100 img (90 %), 2 img/s, 0:05 left"


def test_counting_costs_little() -> None:
    progress = Progress(10**6, desc="x", enabled=False)
    start = time.perf_counter()
    for _ in range(10_000):
        progress.update(1)
    assert time.perf_counter() - start < 1
    assert progress.done == 10_000


def test_say_writes_one_line_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("three bad images skipped")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "three bad images skipped\n")
