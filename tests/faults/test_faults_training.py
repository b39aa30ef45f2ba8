"""What a training run must survive: signals, kill -9 at any moment, full disks, rotten checkpoints, dying workers."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nursery import Child, Nursery
from PIL import Image
from training import log, outcome, tiny, uninterrupted, wait_until, words

from barlowtwins.checkpoint import list_checkpoints, load_newest
from barlowtwins.config import PretrainConfig
from barlowtwins.errors import CheckpointError, OutputError, RunLockedError
from barlowtwins.files import PARTIAL_SUFFIX
from barlowtwins.pretrain import pretrain
from barlowtwins.run import RunFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks of POSIX")

LONG = {"batch_size": 8, "epochs": 8, "knn_every": 4}  # 64 steps: enough to be stopped in the middle, many times


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


def partials(run: Path) -> list[str]:
    return [path.name for path in run.rglob(f"*{PARTIAL_SUFFIX}")]


def wait_for_steps(run: Path, number: int, child: Child) -> None:
    def reached() -> bool:
        assert "error" not in child.output(), child.output()
        return len(log(run)) >= number

    wait_until(reached)


# Signals (row 41), a mid-epoch resume (44), kill -9, two runs in one folder (16) ---------------------------------------


def test_a_run_stopped_by_every_signal_ends_as_if_it_never_was(nursery: Nursery, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(run, **LONG, checkpoint_every=7)
    log_file = tmp_path / "log"

    # SIGTERM to a command as a user starts it, and to its workers.
    command = [sys.executable, "-m", "barlowtwins", *words(config), "--workers", "2"]
    with open(log_file, "wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    wait_until(lambda: len(log(run)) >= 5 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 75, log_file.read_text()
    said = log_file.read_text().splitlines()
    assert len(said) == 2, said
    assert "stopped by SIGTERM after step" in said[1]
    assert "the same command goes on from there" in said[1]

    # Then one after the other, each from where the one before was.
    for number, workers in ((signal.SIGUSR1, 0), (signal.SIGINT, 2), (signal.SIGKILL, 1)):
        before = load_newest(run)
        assert before is not None
        assert before.step == log(run)[-1]["step"]  # saved at the very step at which it stopped
        child = nursery.start(*words(config), "--workers", str(workers), log=tmp_path / number.name)
        wait_for_steps(run, len(log(run)) + 5, child)
        if number == signal.SIGUSR1:  # meanwhile nobody else may write there
            with pytest.raises(RunLockedError, match=rf"process {child.pid} on "):
                pretrain(config)
        child.send_to_all(number)
        assert child.wait() == (-9 if number == signal.SIGKILL else 75), child.output()
        assert f"resuming at step {before.step}" in child.output()
        assert number == signal.SIGKILL or f"stopped by {number.name} after step" in child.output()
        assert "Traceback" not in child.output()

    pretrain(config)
    assert outcome(run) == uninterrupted(**LONG)
    assert partials(run) == []


def test_a_second_interrupt_does_not_wait_for_a_slow_disk(nursery: Nursery, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(run, **LONG, checkpoint_every=1000)
    pretrain(dataclasses.replace(config, max_steps=2))
    slow = "import os, time; os.fsync = lambda file: time.sleep(100 if os.fstat(file).st_size > 10**7 else 0)"
    child = nursery.start(*words(config), log=tmp_path / "log", before=slow)
    wait_for_steps(run, 3, child)
    child.send_to_all(signal.SIGINT)
    wait_until(lambda: any("step-" in name for name in partials(run)))
    time.sleep(0.1)
    start = time.monotonic()
    child.send_to_all(signal.SIGINT)
    assert child.wait() == 130
    assert time.monotonic() - start < 30
    assert child.output().splitlines()[-1].endswith("interrupted")
    assert [path.name for path in list_checkpoints(run)] == ["step-00000002.pt"]
    assert partials(run) == []


@pytest.mark.parametrize("kills", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_no_trace(nursery: Nursery, tmp_path: Path, kills: int) -> None:
    run, rng = tmp_path / "run", random.Random(kills)
    config = tiny(run, **LONG, checkpoint_every=1)  # so that many a kill meets a save
    for number in range(kills):
        done = len(list_checkpoints(run)) and int(list_checkpoints(run)[-1].stem[5:])
        child = nursery.start(*words(config), "--workers", str(number % 2), log=tmp_path / "log")
        if number % 2:  # at any moment, also before the first step
            time.sleep(rng.uniform(0.05, 1.0))
        else:  # with progress
            wait_until(lambda: len(list_checkpoints(run)) > 0 and int(list_checkpoints(run)[-1].stem[5:]) > done)
            time.sleep(rng.uniform(0, 0.1))
        child.send_to_all(signal.SIGKILL)
        assert child.wait() in (-9, 0), child.output()
    pretrain(config)
    assert outcome(run) == uninterrupted(**LONG)
    assert partials(run) == []
    assert "warning" not in (tmp_path / "log").read_text()


# Kills at every boundary of a checkpoint write (row 39) ----------------------------------------------------------------

# Every call by which a file comes to be is a point at which the process can be killed, before and after it, and in the
# middle of each write. `sys.argv`: the RUN folder, the number of the point, and where to list the points passed.
SAVE_AND_DIE = """
import builtins, os, signal, sys
from pathlib import Path
import torch
from barlowtwins.checkpoint import Checkpoint, Saver

run, at, passed = Path(sys.argv[1]), int(sys.argv[2]), []

def point(name):
    if len(passed) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    passed.append(name)

def around(module, name):
    real = getattr(module, name)
    def call(*args, **kwargs):
        point(f"before {name}")
        result = real(*args, **kwargs)
        point(f"after {name}")
        return result
    setattr(module, name, call)

class File:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, data):
        point("before write")
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        point("within write")
        self.file.write(data[half:])
        return len(data)

open_file = builtins.open
def open_and_watch(path, mode="r", *args, **kwargs):
    point("before open")
    file = open_file(path, mode, *args, **kwargs)
    return File(file) if "w" in mode else file

saver = Saver(run)
saver.save(Checkpoint(1, {"w": torch.full((2, 3), 1.0)}, {}, {}, {}))
for name in ("fsync", "replace", "unlink"):
    around(os, name)
builtins.open = open_and_watch
for step in (2, 3, 4):
    saver.save(Checkpoint(step, {"w": torch.full((2, 3), float(step))}, {}, {}, {}))
builtins.open = open_file
open_file(sys.argv[3], "w").write("\\n".join(passed))
"""


@pytest.mark.parametrize("writes", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(nursery: Nursery, tmp_path: Path, writes: str) -> None:
    def save_and_die(at: int) -> int:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        arguments = (str(tmp_path / "run"), str(at), str(tmp_path / "points"))
        return nursery.start(*arguments, code=SAVE_AND_DIE, log=tmp_path / "log").wait()

    assert save_and_die(1_000_000) == 0, (tmp_path / "log").read_text()
    points = (tmp_path / "points").read_text().splitlines()
    assert points.count("after replace") == 3
    assert {"before open", "before write", "within write", "before fsync", "before unlink", "after unlink"} <= {*points}

    alike = [at for at, name in enumerate(points) if name.endswith("write")]
    assert len(alike) > 50
    left_out = set(alike) - set(alike[::25]) if writes == "some" else set()
    for at in sorted(set(range(len(points))) - left_out):
        assert save_and_die(at) == -9
        newest = 1 + points[:at].count("after replace") + (points[at] == "after replace")
        found = load_newest(tmp_path / "run")
        assert found is not None
        assert found.step == newest, points[at]
        assert found.model["w"].tolist() == [[float(newest)] * 3] * 2
        RunFolder(tmp_path / "run").sweep()
        left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
        wanted = [f"step-{step:08d}.pt" for step in range(max(1, newest - 2), newest + 1)]
        assert left in (wanted, wanted[-2:]), points[at]
